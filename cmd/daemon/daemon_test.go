package daemon

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tandemfs/cmd/api"
	"tandemfs/fs/volume"
	"tandemfs/replicator"
)

func testLogger() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestARestartedNodeHasItsNameItsKeyAndItsVolumes(t *testing.T) {
	r := newRig(t)
	r.start()
	before, err := r.client.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	made, err := r.client.CreateVolume(t.Context(), api.CreateVolume{
		Name: "data", Path: r.mkdir("d"), Mount: r.mkdir("m"), NoSuid: true})
	if err != nil {
		t.Fatal(err)
	}
	r.restart()
	after, err := r.client.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if before.Fingerprint != after.Fingerprint || !strings.HasPrefix(after.Fingerprint, "SHA256:") {
		t.Errorf("fingerprint was %s, is %s", before.Fingerprint, after.Fingerprint)
	}
	again := r.mustBe("data", api.VolumeMounted)
	if !reflect.DeepEqual(again, made) {
		t.Errorf("the volume was %+v, is %+v", made, again)
	}
	if !slices.Contains(r.backend.since(0), "mount data nosuid=true nodev=false") {
		t.Errorf("mount options were lost: %q", r.backend.since(0))
	}
}

func TestTheStateFolderIsForItsUserAlone(t *testing.T) {
	r := newRig(t)
	if err := os.Mkdir(r.options.State, 0o755); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.protect("data")
	for name, mode := range map[string]os.FileMode{"": 0o700, identityFile: 0o600, volumesFile: 0o600, lockFile: 0o600} {
		info, err := os.Stat(filepath.Join(r.options.State, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != mode {
			t.Errorf("%q has mode %v, want %v", name, info.Mode().Perm(), mode)
		}
	}
}

func TestTheIdentityIsAnEd25519Certificate(t *testing.T) {
	s, err := openState(filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	c, err := s.identity("alpha")
	if err != nil {
		t.Fatal(err)
	}
	if c.Leaf.PublicKeyAlgorithm != x509.Ed25519 || c.Leaf.Subject.CommonName != "alpha" {
		t.Errorf("made %v for %q", c.Leaf.PublicKeyAlgorithm, c.Leaf.Subject.CommonName)
	}
	if err := c.Leaf.CheckSignature(c.Leaf.SignatureAlgorithm, c.Leaf.RawTBSCertificate, c.Leaf.Signature); err != nil {
		t.Error(err)
	}
}

func TestASecondDaemonOnOneStateFolderIsRefused(t *testing.T) {
	r := newRig(t)
	r.start()
	second := r.options
	second.Socket += "2"
	err := run(t.Context(), second, r.parts())
	if err == nil || !strings.Contains(err.Error(), "another daemon runs on") {
		t.Fatalf("got %v", err)
	}
}

func TestADaemonThatIsDeadAndCannotEndIsNotTakenForARunningOne(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	s, err := openState(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	dead := exec.Command("true")
	if err := dead.Start(); err != nil {
		t.Fatal(err)
	}
	defer dead.Wait() // until then it is a zombie
	if err := os.WriteFile(s.path(lockFile), []byte(strconv.Itoa(dead.Process.Pid)), 0o600); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		_, err := openState(dir)
		if err != nil && strings.Contains(err.Error(), "umount -f") {
			return
		}
		if err == nil || time.Now().After(deadline) {
			t.Fatalf("it says %v", err)
		}
	}
}

func TestAPortThatIsTakenIsNamedAndNothingIsLeftBehind(t *testing.T) {
	r := newRig(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	free := r.options.Listen
	r.options.Listen = ln.Addr().String()
	if err := run(t.Context(), r.options, r.parts()); err == nil || !strings.Contains(err.Error(), "--listen") || api.AsError(err).Code != api.CodeConflict {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Lstat(r.options.Socket); err == nil {
		t.Error("the socket was left")
	}
	r.options.Listen = free
	r.start() // the lock was given up, too
}

func TestAFolderThatIsNotOursIsNotTaken(t *testing.T) {
	r := newRig(t)
	home := r.mkdir("home")
	r.options.State = home
	if err := os.WriteFile(filepath.Join(home, "letter"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	err := run(t.Context(), r.options, r.parts())
	if err == nil || !strings.Contains(err.Error(), "not a state folder") {
		t.Fatalf("got %v", err)
	}
	if info, err := os.Stat(home); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("the folder's mode became %v (%v)", info.Mode(), err)
	}
}

func TestAStateFolderWhoseFirstStartDiedIsTaken(t *testing.T) {
	for _, left := range [][]string{{lockFile}, {lockFile, formatFile + newSuffix}} {
		r := newRig(t)
		r.options.State = r.mkdir("state")
		for _, name := range left {
			if err := os.WriteFile(filepath.Join(r.options.State, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		r.start()
	}
}

func TestANodeWhoseNameNoPeerWouldTakeIsRefused(t *testing.T) {
	for _, name := range []string{"", strings.Repeat("n", 256), "a\nb", "\xff"} {
		r := newRig(t)
		r.options.Name = name
		if err := run(t.Context(), r.options, r.parts()); err == nil || api.AsError(err).Code != api.CodeInvalid {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestAVolumeThatWasHalfRemovedIsFailedAndCanBeRemovedAgain(t *testing.T) {
	r := newRig(t)
	r.start()
	r.protect("data")
	obstacle := filepath.Join(r.options.State, volumesFile+newSuffix)
	if err := os.Mkdir(obstacle, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.RemoveVolume(t.Context(), "data"); err == nil {
		t.Fatal("it is removed, and the list of volumes cannot be written")
	}
	r.mustBe("data", api.VolumeFailed)
	if err := os.Remove(obstacle); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.RemoveVolume(t.Context(), "data"); err != nil {
		t.Fatal(err)
	}
}

func TestNobodyBringsAVolumeBackOnceTheNodeHasTakenItDown(t *testing.T) {
	backend := newFakeBackend()
	state, err := openState(filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer state.close()
	volumes, err := openRegistry(state, backend, nil, testLogger())
	if err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := volumes.create(api.CreateVolume{Name: "data", Path: dir}); err != nil {
		t.Fatal(err)
	}
	if err := volumes.close(); err != nil {
		t.Fatal(err)
	}
	if _, err := volumes.Volume("data"); err == nil || !strings.Contains(err.Error(), "shutting down") {
		t.Errorf("got %v", err)
	}
	if len(backend.mounts) > 0 {
		t.Error("it is mounted again")
	}
}

func TestAMountThatProgramsDoNotFindIsNotCalledMounted(t *testing.T) {
	r := newRig(t)
	r.start()
	at := r.protect("data").Mount
	m := r.backend.mounts[at]
	m.hidden.Store(true)
	if v := r.mustBe("data", api.VolumeFailed); !strings.Contains(v.Error, "restart the node") {
		t.Errorf("it says %q", v.Error)
	}
	m.hidden.Store(false)
	r.mustBe("data", api.VolumeMounted)
}

func TestARelationshipToWhatCannotBeAVolumeIsNotProposed(t *testing.T) {
	r := newRig(t)
	r.start()
	r.protect("data")
	_, err := r.client.CreateRelationship(t.Context(), replicator.CreateRequest{Source: "data", Target: "host", TargetVolume: "b/ad"})
	if err == nil || api.AsError(err).Code != api.CodeInvalid || len(r.relations) > 0 {
		t.Errorf("got %v, and %d relationships", err, len(r.relations))
	}
}

func TestStateOfAnotherVersionIsLeftAlone(t *testing.T) {
	for name, content := range map[string]string{formatFile: "tandemfs state 2\n", volumesFile: `{"version":2}`} {
		r := newRig(t)
		r.start()
		r.stop()
		if err := os.WriteFile(filepath.Join(r.options.State, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		err := run(t.Context(), r.options, r.parts())
		if err == nil || !strings.Contains(err.Error(), "use the version") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestAVolumeWhoseDirectoryIsMissingFailsAloneAndComesBack(t *testing.T) {
	r := newRig(t)
	r.start()
	lost := r.protect("lost")
	r.protect("kept")
	r.stop()
	if err := os.Rename(lost.Path, lost.Path+".away"); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.mustBe("kept", api.VolumeMounted)
	if v := r.mustBe("lost", api.VolumeFailed); !strings.Contains(v.Error, "no such file") {
		t.Errorf("the error is %q", v.Error)
	}
	_, err := r.client.CreateRelationship(t.Context(), replicator.CreateRequest{Source: "lost", TargetVolume: "copy"})
	if api.AsError(err).Code != api.CodeConflict {
		t.Errorf("a relationship with a failed volume: %v", err)
	}
	if err := os.Rename(lost.Path+".away", lost.Path); err != nil {
		t.Fatal(err)
	}
	r.eventually("lost", api.VolumeMounted)
}

func TestAMountThatVanishesIsNoticedAndMadeAgain(t *testing.T) {
	r := newRig(t)
	r.start()
	v := r.protect("data")
	r.backend.breakOn("mount data nosuid=false nodev=false", errors.New("no more mounts"))
	r.backend.mounts[v.Mount].vanish()
	r.eventually("data", api.VolumeFailed)
	r.backend.breakOn("mount data nosuid=false nodev=false", nil)
	r.eventually("data", api.VolumeMounted)
}

func TestADeadMountIsTakenAwayAtTheStart(t *testing.T) {
	r := newRig(t)
	r.start()
	v := r.protect("data")
	r.stop()
	r.backend.stale[v.Mount] = true
	r.start()
	r.mustBe("data", api.VolumeMounted)
	if r.backend.stale[v.Mount] {
		t.Error("the dead mount is still there")
	}
}

func TestACleanEndUnmountsThenCloses(t *testing.T) {
	r := newRig(t)
	r.start()
	r.protect("data")
	before := len(r.backend.since(0))
	r.stop()
	if got := r.backend.since(before); fmt.Sprint(got) != "[unmount data close data]" {
		t.Errorf("the end was %q", got)
	}
	if _, err := os.Lstat(r.options.Socket); err == nil {
		t.Error("the socket was left")
	}
}

func TestARemovedVolumeLeavesPlainFiles(t *testing.T) {
	r := newRig(t)
	r.start()
	v := r.protect("data")
	if err := os.WriteFile(filepath.Join(v.Path, "file"), []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.RemoveVolume(t.Context(), "data"); err != nil {
		t.Fatal(err)
	}
	names, err := os.ReadDir(v.Path)
	if err != nil || len(names) != 1 || names[0].Name() != "file" {
		t.Errorf("left are %v (%v)", names, err)
	}
	_, err = r.client.Volume(t.Context(), "data")
	if api.AsError(err).Code != api.CodeNotFound {
		t.Errorf("the volume is still known: %v", err)
	}
	r.protect("data")
}

func TestAVolumeThatCannotBeOpenedCanBeRemoved(t *testing.T) {
	r := newRig(t)
	r.start()
	v := r.protect("data")
	r.stop()
	if err := os.RemoveAll(v.Path); err != nil {
		t.Fatal(err)
	}
	r.start()
	was, err := r.client.RemoveVolume(t.Context(), "data")
	if err != nil || !strings.Contains(was.Error, ".tandemfs") {
		t.Fatalf("got %+v, %v", was, err)
	}
	if list, err := r.client.Volumes(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("left are %v (%v)", list, err)
	}
}

func TestAVolumeIsRebuiltOnlyWhereItsJournalIsDamaged(t *testing.T) {
	r := newRig(t)
	r.start()
	r.protect("data")
	if _, err := r.client.RebuildVolume(t.Context(), "data"); api.AsError(err).Code != api.CodeConflict {
		t.Errorf("a sound journal: %v", err)
	}
	if _, err := r.client.RebuildVolume(t.Context(), "other"); api.AsError(err).Code != api.CodeNotFound {
		t.Errorf("no volume: %v", err)
	}
	r.stop()
	r.backend.breakOn("open data create=false", errors.New("no such disk"))
	r.start()
	if _, err := r.client.RebuildVolume(t.Context(), "data"); err == nil || slices.Contains(r.backend.since(0), "set aside data") {
		t.Errorf("a volume that fails for another reason: %v", err)
	}
	r.backend.breakOn("open data create=false", fmt.Errorf("oh: %w", volume.ErrJournal))
	v, err := r.client.RebuildVolume(t.Context(), "data")
	if err != nil || v.State != api.VolumeMounted || !slices.Contains(r.backend.since(0), "set aside data") {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestAVolumeThatProgramsUseIsNotRemoved(t *testing.T) {
	r := newRig(t)
	r.start()
	r.protect("data")
	r.backend.breakOn("release data", syscall.EBUSY)
	_, err := r.client.RemoveVolume(t.Context(), "data")
	if e := api.AsError(err); e.Code != api.CodeConflict || !strings.Contains(e.Message, "fuser") {
		t.Fatalf("got %v", err)
	}
	r.mustBe("data", api.VolumeMounted)
}

func TestAVolumeInUseIsNotRemoved(t *testing.T) {
	r := newRig(t)
	r.start()
	r.protect("data")
	s, err := r.client.CreateRelationship(t.Context(), replicator.CreateRequest{Source: "data", TargetVolume: "copy"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.client.RemoveVolume(t.Context(), "data")
	if e := api.AsError(err); e.Code != api.CodeConflict || !strings.Contains(e.Message, s.ID) {
		t.Fatalf("got %v", err)
	}
	if v := r.mustBe("data", api.VolumeMounted); !slices.Equal(v.Relationships, []string{s.ID}) {
		t.Errorf("the volume names %q", v.Relationships)
	}
}

func TestAVolumeThatCannotBeMountedIsNotMade(t *testing.T) {
	r := newRig(t)
	r.start()
	r.backend.breakOn("mount data nosuid=false nodev=false", errors.New("no FUSE here"))
	dir := r.mkdir("data")
	_, err := r.client.CreateVolume(t.Context(), api.CreateVolume{Name: "data", Path: dir})
	if err == nil || !strings.Contains(err.Error(), "no FUSE here") {
		t.Fatalf("got %v", err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("left in the directory: %v (%v)", names, err)
	}
	if list, err := r.client.Volumes(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("left are %v (%v)", list, err)
	}
}

// target makes a volume by authorizing a relationship onto it.
func (r *rig) target(name, dir string) {
	r.t.Helper()
	r.relations = append(r.relations, replicator.Status{
		ID: "abc1", State: replicator.StateAwaitingAuthorization, Target: replicator.End{Volume: name}})
	_, err := r.client.AuthorizeRelationship(r.t.Context(), "abc", replicator.AuthorizeRequest{CreateDir: dir})
	if err != nil {
		r.t.Fatal(err)
	}
}

func TestATargetIsNeverWritableWhileItsNodeStarts(t *testing.T) {
	r := newRig(t)
	r.start()
	dir := filepath.Join(r.dir, "copy")
	r.target("copy", dir)
	if v := r.mustBe("copy", api.VolumeMounted); !v.ReadOnly || v.Path != dir {
		t.Fatalf("the target is %+v", v)
	}
	r.stop()
	before := len(r.backend.since(0))
	r.start()
	want := "[guard open copy create=false volume copy ro=true mount copy nosuid=false nodev=false]"
	if got := r.backend.since(before); fmt.Sprint(got) != want {
		t.Errorf("the start was %q", got)
	}
}

func TestATargetIsWritableOnceItsRelationshipIsDeleted(t *testing.T) {
	for _, how := range []string{"while the node runs", "just before the node died"} {
		r := newRig(t)
		r.start()
		r.target("copy", r.mkdir("copy"))
		if how == "while the node runs" {
			if _, err := r.client.DeleteRelationship(t.Context(), "abc1"); err != nil {
				t.Fatal(err)
			}
		} else {
			r.relations = nil
			r.restart()
		}
		if v := r.mustBe("copy", api.VolumeMounted); v.ReadOnly {
			t.Errorf("%s: still read-only", how)
		}
		r.restart()
		if v := r.mustBe("copy", api.VolumeMounted); v.ReadOnly {
			t.Errorf("%s: read-only again", how)
		}
	}
}

func TestATargetThatCannotBeOpenedIsWritableWhenItComesBack(t *testing.T) {
	r := newRig(t)
	r.start()
	dir := r.mkdir("copy")
	r.target("copy", dir)
	r.stop()
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	r.start()
	if _, err := r.client.DeleteRelationship(t.Context(), "abc1"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	if v := r.eventually("copy", api.VolumeMounted); v.ReadOnly {
		t.Error("it came back read-only")
	}
}

func TestAVolumeThatCannotBecomeReadOnlyStaysWritable(t *testing.T) {
	r := newRig(t)
	r.start()
	r.protect("copy")
	r.backend.breakOn("volume copy ro=true", errors.New("remount refused"))
	r.relations = []replicator.Status{{ID: "abc1", Target: replicator.End{Volume: "copy"}}}
	_, err := r.client.AuthorizeRelationship(t.Context(), "abc1", replicator.AuthorizeRequest{})
	if err == nil || !strings.Contains(err.Error(), "remount refused") {
		t.Fatalf("got %v", err)
	}
	if last := r.backend.since(0); last[len(last)-1] != "volume copy ro=false" {
		t.Errorf("the volume was not switched back: %q", last)
	}
	if v := r.mustBe("copy", api.VolumeMounted); v.ReadOnly {
		t.Error("it is kept as read-only")
	}
}

func TestADirectoryMadeForATargetGoesWhenTheTargetFails(t *testing.T) {
	r := newRig(t)
	r.start()
	r.backend.breakOn("open copy create=true", errors.New("no room"))
	r.relations = []replicator.Status{{ID: "abc1", Target: replicator.End{Volume: "copy"}}}
	dir := filepath.Join(r.dir, "copy")
	_, err := r.client.AuthorizeRelationship(t.Context(), "abc1", replicator.AuthorizeRequest{CreateDir: dir})
	if err == nil || !strings.Contains(err.Error(), "no room") {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Lstat(dir); err == nil {
		t.Error("the directory was left")
	}
}

func TestAnAbbreviatedIDMustBeUnique(t *testing.T) {
	r := newRig(t)
	r.start()
	r.relations = []replicator.Status{{ID: "ab"}, {ID: "abc"}, {ID: "abd"}, {ID: "xyz"}}
	for id, want := range map[string]string{"ab": "ab", "x": "xyz", "abd": "abd"} {
		if s, err := r.client.Relationship(t.Context(), id); err != nil || s.ID != want {
			t.Errorf("%s gave %s, %v", id, s.ID, err)
		}
	}
	for id, code := range map[string]api.Code{"a": api.CodeInvalid, "q": api.CodeNotFound, "abcd": api.CodeNotFound} {
		if _, err := r.client.Relationship(t.Context(), id); api.AsError(err).Code != code {
			t.Errorf("%s: %v, want %s", id, err, code)
		}
	}
}

func TestTheServiceManagerHearsOfTheStartAndTheEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	ln, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	r := newRig(t)
	r.start()
	r.stop()
	for _, want := range []string{"READY=1", "STOPPING=1"} {
		buffer := make([]byte, 64)
		n, err := ln.Read(buffer)
		if err != nil || string(buffer[:n]) != want {
			t.Errorf("heard %q (%v), want %s", buffer[:n], err, want)
		}
	}
}

func TestTheListOfVolumesSurvivesAnEndAtAnyMoment(t *testing.T) {
	s, err := openState(filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if err := s.saveVolumes([]record{{CreateVolume: api.CreateVolume{Name: "a"}}}); err != nil {
		t.Fatal(err)
	}
	// A write that died half way has left its new file, torn.
	if err := os.WriteFile(s.path(volumesFile+".new"), []byte(`{"version":1,"vol`), 0o600); err != nil {
		t.Fatal(err)
	}
	kept, err := s.loadVolumes()
	if err != nil || len(kept) != 1 || kept[0].Name != "a" {
		t.Fatalf("got %v, %v", kept, err)
	}
	if err := s.saveVolumes(nil); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(s.path(volumesFile))
	if err != nil || !json.Valid(data) {
		t.Errorf("%q, %v", data, err)
	}
}
