package volume

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
)

// reach says what a descriptor must be good for. A higher one serves the lower ones too.
type reach uint8

const (
	reachPath reach = iota // O_PATH: attributes, extended attributes, links
	reachDir               // a directory's entries
	reachRead              // a regular file's content
	reachData              // a regular file's content, for writing too
)

// openInode is an open descriptor of one inode, shared by all who need it. It is what the journal asks for
// before images (journal.Before, in before.go).
type openInode struct {
	v     *Volume
	id    journal.Ident
	fd    int
	reach reach
	// plain: known to carry no set-id bits and no capabilities, so that a write has none to drop.
	plain atomic.Bool
	// nameless: it lost its last name and is kept open for the kernel, whatever name it has where views find it.
	nameless atomic.Bool
	users    int        // under openCache.mu
	clocked  bool       // in openCache.clock; under openCache.mu
	gone     bool       // replaced or evicted: closed by the last user; under openCache.mu
	used     bool       // since the clock's hand last passed; under openCache.mu
	seek     sync.Mutex // held while a directory's position is in use
}

// openCache keeps descriptors of inodes open between operations, so that a read or write of an open file
// costs no open: the kernel is told to send no OPEN, so nobody says which files are in use. Inodes that
// lost their last name while the kernel refers to them are kept open by it until Forget, as the only
// thing that keeps their content alive.
type openCache struct {
	v       *Volume
	backing *sys.Backing
	limit   int

	mu     sync.Mutex
	inodes map[journal.Ident]*openInode
	clock  []*openInode // all of inodes but the orphans, in the order of the clock's hand
	hand   int
	orphan map[journal.Ident]*openInode
	// retired are the descriptors that unlock closes.
	retired []int
}

func newOpenCache(v *Volume, limit int) *openCache {
	return &openCache{
		v: v, backing: v.backing, limit: limit,
		inodes: make(map[journal.Ident]*openInode),
		orphan: make(map[journal.Ident]*openInode),
	}
}

// unlock lets go of mu, and then closes what was retired meanwhile: the last descriptor of an inode without a name
// frees its blocks, and nobody else should wait for that.
func (c *openCache) unlock() {
	retired := c.retired
	c.retired = nil
	c.mu.Unlock()
	for _, fd := range retired {
		sys.Close(fd)
	}
}

// get gives a descriptor of an inode, opened by handle if there is none yet. put gives it back.
func (c *openCache) get(id journal.Ident, want reach) (*openInode, error) {
	c.mu.Lock()
	if o := c.find(id); o != nil && o.reach >= want {
		o.users++
		o.used = true
		c.mu.Unlock()
		return o, nil
	}
	c.mu.Unlock()
	fd, got, err := c.open(id, want)
	if err != nil {
		return nil, err
	}
	return c.addNamed(id, fd, got)
}

// addNamed is add for a descriptor that was opened by handle, which succeeds for an inode without a name too
// while anybody has it open. Kept in the cache such a one would hold its blocks for as long as nothing
// pushes it out. The inode is looked at under the lock: it loses its last name either before, and is seen
// here, or after, and forget takes it out again.
func (c *openCache) addNamed(id journal.Ident, fd int, got reach) (*openInode, error) {
	c.mu.Lock()
	defer c.unlock()
	var st unix.Statx_t
	err := sys.Stat(fd, "", &st)
	if err == nil && st.Nlink == 0 && c.find(id) == nil {
		err = unix.ESTALE
	}
	if err != nil {
		c.retired = append(c.retired, fd)
		return nil, err
	}
	c.v.around.meet(id, &st)
	return c.addLocked(id, fd, got), nil
}

func (c *openCache) find(id journal.Ident) *openInode {
	if o := c.inodes[id]; o != nil {
		return o
	}
	if len(c.orphan) > 0 {
		return c.orphan[id]
	}
	return nil
}

// open opens an inode by its handle, as far as it was asked for. Content that was asked for reading is
// opened for writing too where that is allowed, since a write often follows; a file that is immutable, or
// executed on the backing filesystem, is not.
func (c *openCache) open(id journal.Ident, want reach) (int, reach, error) {
	switch want {
	case reachPath:
		fd, err := c.backing.OpenIdent(id, unix.O_PATH)
		return fd, reachPath, err
	case reachDir:
		fd, err := c.backing.OpenIdent(id, unix.O_RDONLY|unix.O_DIRECTORY)
		return fd, reachDir, err
	case reachData:
		fd, err := c.backing.OpenIdent(id, unix.O_RDWR|unix.O_NONBLOCK)
		return fd, reachData, err
	}
	fd, err := c.backing.OpenIdent(id, unix.O_RDWR|unix.O_NONBLOCK)
	if err == nil {
		return fd, reachData, nil
	}
	fd, err = c.backing.OpenIdent(id, unix.O_RDONLY|unix.O_NONBLOCK)
	return fd, reachRead, err
}

// add puts a freshly opened descriptor into the cache, with one user. Where another was faster and reaches
// as far, that one is given and the new one closed.
func (c *openCache) add(id journal.Ident, fd int, got reach) *openInode {
	c.mu.Lock()
	defer c.unlock()
	return c.addLocked(id, fd, got)
}

// addLocked is add, called with mu held.
func (c *openCache) addLocked(id journal.Ident, fd int, got reach) *openInode {
	if old := c.find(id); old != nil {
		if old.reach >= got {
			c.retired = append(c.retired, fd)
			old.users++
			return old
		}
		if c.orphan[id] == old { // keep an orphan's place: Forget looks there
			o := &openInode{v: c.v, id: id, fd: fd, reach: got, users: 1, used: true}
			o.nameless.Store(old.nameless.Load())
			c.orphan[id] = o
			c.retire(old)
			return o
		}
		c.drop(old)
	}
	o := &openInode{v: c.v, id: id, fd: fd, reach: got, users: 1, used: true}
	c.enlist(o)
	c.evict()
	return o
}

// put gives a descriptor back.
func (c *openCache) put(o *openInode) {
	c.mu.Lock()
	if o.users--; o.gone {
		c.retire(o)
	}
	c.unlock()
}

// enlist makes a descriptor the one of an inode with a name. One that was taken out of the cache a moment ago may be in
// the clock still. Called with mu held.
func (c *openCache) enlist(o *openInode) {
	c.inodes[o.id] = o
	if !o.clocked {
		o.clocked = true
		c.clock = append(c.clock, o)
	}
}

// drop takes a descriptor out of the cache. Called with mu held.
func (c *openCache) drop(o *openInode) {
	delete(c.inodes, o.id)
	c.retire(o)
}

// retire has a descriptor closed when its last user is done. Called with mu held; unlock is due.
func (c *openCache) retire(o *openInode) {
	o.gone = true
	if o.users == 0 {
		c.retired = append(c.retired, o.fd)
	}
}

// evict closes descriptors that were not used since the hand last passed (the clock algorithm), until the
// limit holds. Called with mu held. Dropped ones leave the clock as the hand meets them.
func (c *openCache) evict() {
	for tries := 2 * len(c.clock); len(c.inodes) > c.limit && tries > 0; tries-- {
		if c.hand >= len(c.clock) {
			c.hand = 0
		}
		switch o := c.clock[c.hand]; {
		case o.gone || c.inodes[o.id] != o:
			c.unclock()
		case o.users > 0 || o.used:
			o.used = false
			c.hand++
		default:
			c.drop(o)
			c.unclock()
		}
	}
	if len(c.clock) > 2*c.limit {
		c.compact()
	}
}

// unclock removes what the hand points at. Called with mu held.
func (c *openCache) unclock() {
	last := len(c.clock) - 1
	c.clock[c.hand].clocked = false
	c.clock[c.hand] = c.clock[last]
	c.clock[last] = nil
	c.clock = c.clock[:last]
}

// compact removes from the clock what left the cache by itself. Called with mu held.
func (c *openCache) compact() {
	kept := c.clock[:0]
	for _, o := range c.clock {
		if o.clocked = c.inodes[o.id] == o; o.clocked {
			kept = append(kept, o)
		}
	}
	clear(c.clock[len(kept):])
	c.clock = kept
	c.hand = 0
}

// hold keeps an inode that is about to lose its last name open until release.
func (c *openCache) hold(id journal.Ident) error {
	o, err := c.get(id, reachPath)
	if err != nil {
		return err
	}
	c.holdOpen(o)
	c.put(o)
	return nil
}

// holdOpen is hold for an inode that its caller uses; it may have been taken out of the cache since.
func (c *openCache) holdOpen(o *openInode) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.orphan[o.id] != nil {
		return
	}
	if current := c.inodes[o.id]; current != nil {
		delete(c.inodes, o.id)
		o = current
	}
	o.gone = false
	c.orphan[o.id] = o
}

// orphaned reports whether the inode is kept open only by hold.
func (c *openCache) orphaned(id journal.Ident) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.orphan[id] != nil
}

// adopt makes a held inode an ordinary one again: it has a name again.
func (c *openCache) adopt(id journal.Ident) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o := c.orphan[id]; o != nil {
		delete(c.orphan, id)
		o.nameless.Store(false)
		c.enlist(o)
	}
}

// release lets go of an inode that hold kept, unless the kernel refers to it: it may have got to know the inode again
// since it forgot it.
func (c *openCache) release(id journal.Ident) {
	c.mu.Lock()
	defer c.unlock()
	if o := c.orphan[id]; o != nil && !c.v.mounted().Refers(id) {
		delete(c.orphan, id)
		c.retire(o)
	}
}

// releaseAll lets go of every inode that hold kept.
func (c *openCache) releaseAll() {
	c.mu.Lock()
	defer c.unlock()
	for id, o := range c.orphan {
		delete(c.orphan, id)
		c.retire(o)
	}
}

// lost is told of an inode that has lost its last name: unless hold keeps it, its descriptor is closed.
func (c *openCache) lost(id journal.Ident) {
	c.mu.Lock()
	defer c.unlock()
	if o := c.orphan[id]; o != nil {
		o.nameless.Store(true)
	}
	if o := c.inodes[id]; o != nil {
		c.drop(o)
	}
}

// forget closes the cached descriptor of an inode that is gone, so that its blocks are freed.
func (c *openCache) forget(id journal.Ident) {
	c.mu.Lock()
	defer c.unlock()
	if o := c.inodes[id]; o != nil {
		c.drop(o)
	}
}

// suspect takes what is remembered of an inode's privileges for void: somebody else has changed it.
func (c *openCache) suspect(id journal.Ident) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o := c.find(id); o != nil {
		o.plain.Store(false)
	}
}

// gone reports whether an inode that is in the cache has lost its last name.
func (c *openCache) gone(id journal.Ident) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.inodes[id]
	if o == nil {
		return false
	}
	var st unix.Statx_t
	return sys.Stat(o.fd, "", &st) == nil && st.Nlink == 0
}

// renew takes every inode with a name out of the cache, so that each is looked at when it is used next.
func (c *openCache) renew() {
	c.mu.Lock()
	defer c.unlock()
	for _, o := range c.inodes {
		c.drop(o)
	}
}

// close closes every descriptor. Nobody may be using one.
func (c *openCache) close() {
	c.releaseAll()
	c.mu.Lock()
	defer c.unlock()
	for _, o := range c.inodes {
		c.drop(o)
	}
	c.clock, c.hand = nil, 0
}
