package cli

import (
	"fmt"
	"strings"
	"time"

	"tandemfs/replicator"
)

// writeStatus writes all that is known of a relationship.
func writeStatus(o *output, s replicator.Status) {
	o.line("relationship %s, this node is the %s", s.ID, s.Role)
	fields := append([][2]string{{"state", standing(s)}}, endFields(s)...)
	fields = append(fields, [2]string{"job", job(s)})
	fields = append(fields, transferFields(s.Progress)...)
	fields = append(fields,
		[2]string{"on the wire", wire(s)},
		[2]string{"recovery point", recoveryPoint(o, s)},
		[2]string{"behind", behind(s.RecoveryPoint)},
		[2]string{"verified", verified(o, s)},
		[2]string{"last error", lastError(o, s)},
		[2]string{"next try", o.moment(s.RetryAt)},
		[2]string{"created", o.moment(s.Created)},
	)
	o.fields(fields)
}

// standing says in a few words where a relationship is and what it does.
func standing(s replicator.Status) string {
	words := []string{strings.ReplaceAll(string(s.State), "-", " ")}
	switch {
	case s.State == replicator.StateEnded && s.EndReason != "":
		words = append(words, s.EndReason)
	case !s.Enabled && s.State != replicator.StateEnded:
		words = append(words, "disabled")
	case s.State == replicator.StateEstablished:
		words = append(words, string(s.Job))
	}
	return strings.Join(words, ", ")
}

// endFields describes both ends.
func endFields(s replicator.Status) [][2]string {
	return [][2]string{
		{"mode", string(s.Mode)},
		{"source", end(s.Source)},
		{"", s.Source.Fingerprint},
		{"target", end(s.Target)},
		{"", s.Target.Fingerprint},
	}
}

// place names a volume on a node.
func place(e replicator.End) string {
	node := e.Node
	if node == "" {
		node = e.Address
	}
	return node + ":" + e.Volume
}

// end describes one end in a line.
func end(e replicator.End) string {
	words := []string{place(e)}
	if e.Path != "" {
		words = append(words, e.Path)
	}
	if e.Address != "" {
		words = append(words, e.Address)
	}
	if e.ReadOnly {
		words = append(words, "read-only")
	}
	return strings.Join(words, ", ")
}

// job says what the relationship does at the moment.
func job(s replicator.Status) string {
	p := s.Progress
	if s.Job == replicator.JobDisconnected && s.Role == replicator.RoleTarget {
		return string(s.Job) + " (the source has to come: its node says why it does not)"
	}
	if s.Job != replicator.JobRunning {
		return string(s.Job)
	}
	text := fmt.Sprintf("running, %.1f %%", p.PercentComplete)
	if p.Comparing != "" {
		text = fmt.Sprintf("running, comparing both sides (%s), %.1f %%", p.Comparing, p.PercentComplete)
	}
	if p.First {
		text = fmt.Sprintf("running, first transfer, %.1f %%", p.PercentComplete)
	}
	if p.ETASeconds != nil {
		text += ", " + seconds(*p.ETASeconds) + " to go"
	}
	return text
}

// transferFields describes the running transfer or the last one; none before the first.
func transferFields(p replicator.Progress) [][2]string {
	if p.Started.IsZero() {
		return nil
	}
	return [][2]string{
		{"files", counts(p.Files, count)},
		{"content", counts(p.Bytes, size)},
		{"throughput", fmt.Sprintf("%s/s now, %s/s over all of %s",
			size(int64(p.ThroughputCurrent)), size(int64(p.ThroughputOverall)), seconds(p.RunSeconds))},
	}
}

func counts(c replicator.Count, text func(int64) string) string {
	return fmt.Sprintf("%s transferred, %s unchanged, %s remaining, %s in all",
		text(c.Transferred), text(c.Unchanged), text(c.Remaining), text(c.Total))
}

func wire(s replicator.Status) string {
	if s.TotalWireBytes == 0 && s.Transfers == 0 {
		return ""
	}
	return fmt.Sprintf("%s in this transfer, %s since the node started (transfers: %s)",
		size(s.Progress.WireBytes), size(s.TotalWireBytes), count(s.Transfers))
}

func recoveryPoint(o *output, s replicator.Status) string {
	switch r := s.RecoveryPoint; {
	case r.Epoch != 0:
		return fmt.Sprintf("%s, epoch %d", o.moment(r.Time), r.Epoch)
	case pointUnknown(s):
		return "not known while volume " + s.Source.Volume + " cannot be used; the target knows it"
	}
	return "none yet"
}

// pointUnknown reports whether there may be a recovery point that this node does not know: a source has it in its
// volume's journal.
func pointUnknown(s replicator.Status) bool {
	r := s.RecoveryPoint
	return s.Role == replicator.RoleSource && s.State == replicator.StateEstablished && r.Epoch == 0 && r.BehindBytes == nil
}

// behind says how far the target is behind, as far as this end knows.
func behind(r replicator.RecoveryPoint) string {
	var words []string
	if r.BehindSeconds != nil {
		words = append(words, seconds(*r.BehindSeconds))
	}
	if r.BehindBytes != nil {
		words = append(words, size(*r.BehindBytes))
	}
	return strings.Join(words, ", ")
}

// verified says when all was last found equal, and how a comparison stands.
func verified(o *output, s replicator.Status) string {
	var words []string
	if s.Verified.Epoch != 0 {
		words = append(words, fmt.Sprintf("equal as of %s, epoch %d", o.moment(s.Verified.Time), s.Verified.Epoch))
	}
	if v := s.Verification; v != nil {
		line := verificationLine(*v)
		if v.Epoch != 0 {
			line = fmt.Sprintf("epoch %d: %s", v.Epoch, line)
		}
		words = append(words, line)
	}
	return strings.Join(words, "; ")
}

func lastError(o *output, s replicator.Status) string {
	if s.LastError == "" {
		return ""
	}
	if when := o.moment(s.LastErrorTime); when != "" {
		return s.LastError + ", " + when
	}
	return s.LastError
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// liveLine is a relationship in one line, for watching it.
func liveLine(s replicator.Status, now time.Time) string {
	words := []string{standing(s)}
	if s.Job == replicator.JobRunning {
		words = append(words, transferLine(s.Progress))
	}
	if r := s.RecoveryPoint; r.Epoch > 0 {
		words = append(words, fmt.Sprintf("recovery point %d, %s", r.Epoch, relative(now.Sub(r.Time))))
		if text := behind(r); text != "" {
			words = append(words, "behind "+text)
		}
	}
	if s.LastError != "" {
		words = append(words, "error: "+s.LastError)
	}
	if s.RetryAt.After(now) {
		words = append(words, "next try "+relative(now.Sub(s.RetryAt)))
	}
	return printable(strings.ReplaceAll(strings.Join(words, "; "), "\n", " "))
}

// transferLine is a running transfer in a few words.
func transferLine(p replicator.Progress) string {
	text := fmt.Sprintf("%.1f %%, %s, ", p.PercentComplete, transferRate(p))
	if p.First {
		text = "first transfer " + text
	}
	return strings.TrimSuffix(text, ", ")
}

// transferRate is how much of a transfer is done, how fast, and when it will be over.
func transferRate(p replicator.Progress) string {
	text := fmt.Sprintf("%s of %s, %s/s", size(p.Bytes.Total-p.Bytes.Remaining), size(p.Bytes.Total), size(int64(p.ThroughputCurrent)))
	if p.ETASeconds != nil {
		text += ", " + seconds(*p.ETASeconds) + " to go"
	}
	return text
}
