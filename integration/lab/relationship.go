package lab

import (
	"fmt"
	"time"
)

// Status is what the lab reads of a relationship's status: the names are those of docs/api.md.
type Status struct {
	ID        string `json:"id"`
	Role      string `json:"role"`
	State     string `json:"state"`
	EndReason string `json:"end_reason"`
	Mode      string `json:"mode"`
	Enabled   bool   `json:"enabled"`
	Job       string `json:"job"`
	Source    End    `json:"source"`
	Target    End    `json:"target"`
	Progress  struct {
		First           bool    `json:"first"`
		Comparing       string  `json:"comparing"`
		PercentComplete float64 `json:"percent_complete"`
		RunSeconds      float64 `json:"run_seconds"`
		Files           Count   `json:"files"`
		Bytes           Count   `json:"bytes"`
	} `json:"progress"`
	RecoveryPoint struct {
		Epoch         uint64    `json:"epoch"`
		Time          time.Time `json:"time"`
		BehindSeconds *float64  `json:"behind_seconds"`
		BehindBytes   *int64    `json:"behind_bytes"`
	} `json:"recovery_point"`
	TotalWireBytes int64  `json:"total_wire_bytes"`
	Transfers      int64  `json:"transfers"`
	LastError      string `json:"last_error"`
	Unreadable     *struct {
		Count int
		Files []struct{ Path, Error string }
	} `json:"unreadable"`
}

// An End is one side of a relationship.
type End struct {
	Node        string `json:"node"`
	Fingerprint string `json:"fingerprint"`
	Address     string `json:"address"`
	Volume      string `json:"volume"`
	Path        string `json:"path"`
	ReadOnly    bool   `json:"read_only"`
}

// A Count is how much of something a transfer has done.
type Count struct {
	Transferred, Unchanged, Remaining, Total int64
}

// A Pair is a source volume and the copy of it on another node.
type Pair struct {
	Source, Target *Node
	ID             string // of the relationship
	t              T
}

// Relate creates a relationship from the source's volume to the target's, which authorizes it with the
// further arguments, and waits until both ends call it established.
func Relate(t T, source *Node, volume string, target *Node, targetVolume string, authorize ...string) *Pair {
	t.Helper()
	return authorized(Propose(t, source, volume, target, targetVolume), authorize...)
}

// RelateAt is Relate with the address that the source is told to reach the target at.
func RelateAt(t T, source *Node, volume string, target *Node, targetVolume, address string) *Pair {
	t.Helper()
	return authorized(proposeAt(t, source, volume, target, targetVolume, address))
}

// authorized makes a proposal an established relationship.
func authorized(p *Pair, authorize ...string) *Pair {
	p.t.Helper()
	p.Target.Must(append([]string{"relationship", "authorize", "--yes"}, append(authorize, p.ID)...)...)
	for _, n := range []*Node{p.Source, p.Target} {
		p.Await(n, time.Minute, "established", func(s Status) error {
			if s.State != "established" {
				return fmt.Errorf("it is %s", s.State)
			}
			return nil
		})
	}
	return p
}

// Propose creates a relationship and waits until the target awaits authorization.
func Propose(t T, source *Node, volume string, target *Node, targetVolume string) *Pair {
	t.Helper()
	return proposeAt(t, source, volume, target, targetVolume, target.Namespace.Address)
}

func proposeAt(t T, source *Node, volume string, target *Node, targetVolume, address string) *Pair {
	t.Helper()
	var created Status
	source.Decode(&created, "relationship", "create", "--source", volume, "--target", address, "--target-volume", targetVolume)
	p := &Pair{Source: source, Target: target, ID: created.ID, t: t}
	p.Await(target, time.Minute, "awaiting authorization", func(s Status) error {
		if s.State != "awaiting-authorization" {
			return fmt.Errorf("it is %s", s.State)
		}
		return nil
	})
	return p
}

// Related is the pair of a relationship that was created in another way than by Relate or Propose.
func Related(t T, source, target *Node, id string) *Pair {
	return &Pair{Source: source, Target: target, ID: id, t: t}
}

// Status is the relationship as the node sees it.
func (p *Pair) Status(n *Node) Status {
	p.t.Helper()
	var s Status
	n.Decode(&s, "relationship", "status", p.ID)
	return s
}

// Await waits until the node's status of the relationship passes the check.
func (p *Pair) Await(n *Node, within time.Duration, what string, check func(Status) error) Status {
	p.t.Helper()
	var last Status
	Eventually(p.t, within, "node "+n.Name+": relationship "+what, func() error {
		r := n.Run("relationship", "status", p.ID, "--json")
		if r.Code != 0 {
			return fmt.Errorf("exit code %d: %s", r.Code, r.Stderr)
		}
		last = Status{}
		if err := decode(r.Stdout, &last); err != nil {
			return err
		}
		return check(last)
	})
	return last
}

// Quiet waits until the target holds all that the source has: the job is idle and nothing is behind.
func (p *Pair) Quiet(within time.Duration) Status {
	p.t.Helper()
	return p.Await(p.Source, within, "quiet", IsQuiet)
}

// IsQuiet gives nil when the target holds all that the source has, and otherwise what is missing.
func IsQuiet(s Status) error {
	behind := s.RecoveryPoint.BehindBytes
	age := s.RecoveryPoint.BehindSeconds
	switch {
	case s.Job != "idle":
		return fmt.Errorf("the job is %s at %.1f %%, last error %q", s.Job, s.Progress.PercentComplete, s.LastError)
	case s.RecoveryPoint.Epoch == 0:
		return fmt.Errorf("there is no recovery point yet")
	case behind == nil || age == nil:
		return fmt.Errorf("the source does not tell how far behind the target is")
	case *behind != 0 || *age != 0:
		return fmt.Errorf("the target is %d bytes and %.3f s behind", *behind, *age)
	}
	return nil
}
