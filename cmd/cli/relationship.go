package cli

import (
	"context"
	"fmt"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"tandemfs/cmd/api"
	"tandemfs/replicator"
)

func relationshipCommands(env *Env) []*urfave.Command {
	return []*urfave.Command{
		env.clientCommand(command{
			name: "create", run: createRelationship,
			about: "propose that a volume is replicated to another node (on the source)",
			description: "The target's node shows the proposal until somebody authorizes or rejects it there. An\n" +
				"unreachable target is tried again until it answers.",
			flags: []urfave.Flag{
				&urfave.StringFlag{Name: "source", Usage: "the `VOLUME` of this node (required)"},
				&urfave.StringFlag{Name: "target", Usage: fmt.Sprintf("the other node, `HOST[:PORT]` (required; port %d if none is given)", replicator.DefaultPort)},
				&urfave.StringFlag{Name: "target-volume", Usage: "the volume's `NAME` there (required)"},
				&urfave.StringFlag{Name: "target-fingerprint", Usage: "refuse any node but the one with this `FINGERPRINT` (see `node show` there)"},
				&urfave.BoolFlag{Name: "disabled", DisableDefaultText: true, Usage: "replicate nothing until `relationship enable`"},
			},
		}),
		env.clientCommand(command{
			name: "authorize", args: "ID", run: authorizeRelationship, complete: relationshipIDs,
			about: "accept a proposed relationship (on the target)",
			description: "Shows whose fingerprint is about to be trusted, and asks. The target volume becomes\n" +
				"read-only for everybody else.",
			flags: []urfave.Flag{
				&urfave.BoolFlag{Name: "allow-non-empty", DisableDefaultText: true, Usage: "accept a target volume that holds files: both are compared, what differs is sent, what the source does not have is removed"},
				&urfave.StringFlag{Name: "create", Usage: "make the target volume, protecting `DIR`"},
				&urfave.StringFlag{Name: "source-fingerprint", Usage: "refuse any source but the one with this `FINGERPRINT`"},
				yesFlag(),
			},
		}),
		env.clientCommand(command{
			name: "reject", args: "ID", complete: relationshipIDs,
			about: "turn a proposed relationship down (on the target)",
			run: func(ctx context.Context, c *call) error {
				s, err := c.client.RejectRelationship(ctx, c.Args().First())
				return c.done(s, err, "rejected")
			},
		}),
		env.clientCommand(command{
			name: "list", run: listRelationships,
			about: "list the relationships that this node is a part of",
		}),
		env.clientCommand(command{
			name: "status", args: "ID", run: showStatus, complete: relationshipIDs,
			about: "show how a relationship stands",
			description: "With --watch it goes on showing it: on a terminal as a progress bar during the first\n" +
				"transfer and as one line after that, else as a line for each change.",
			flags: []urfave.Flag{&urfave.BoolFlag{Name: "watch", Aliases: []string{"w"}, DisableDefaultText: true, Usage: "go on until interrupted, or until the relationship ends"}},
		}),
		env.clientCommand(command{
			name: "enable", args: "ID", complete: relationshipIDs,
			about: "let a relationship replicate",
			run:   func(ctx context.Context, c *call) error { return enableRelationship(ctx, c, true) },
		}),
		env.clientCommand(command{
			name: "disable", args: "ID", complete: relationshipIDs,
			about: "pause a relationship; changes are remembered",
			run:   func(ctx context.Context, c *call) error { return enableRelationship(ctx, c, false) },
		}),
		verifyCommand(env),
		env.clientCommand(command{
			name: "reconcile", args: "ID", run: reconcileRelationship, complete: relationshipIDs,
			about: "compare everything and make the target what the source is (on the source)",
			description: "For when one of the two was put back to an earlier state, which the status says. Only what\n" +
				"differs is sent; but all content is read on both sides.",
			flags: []urfave.Flag{yesFlag()},
		}),
		env.clientCommand(command{
			name: "delete", args: "ID", run: deleteRelationship, complete: relationshipIDs,
			about: "end a relationship for good (on either end)",
			description: "Both sides keep their files, and the target becomes writable. It works on either end, also\n" +
				"when the other cannot be reached: that one then has to be deleted there, too.",
			flags: []urfave.Flag{yesFlag()},
		}),
	}
}

func createRelationship(ctx context.Context, c *call) error {
	for _, flag := range []string{"source", "target", "target-volume"} {
		if c.String(flag) == "" {
			return usage("--%s is missing (see --help)", flag)
		}
	}
	s, err := c.client.CreateRelationship(ctx, replicator.CreateRequest{
		Source: c.String("source"), Target: c.String("target"), TargetVolume: c.String("target-volume"),
		Disabled: c.Bool("disabled"), TargetFingerprint: c.String("target-fingerprint"),
	})
	if err != nil {
		return err
	}
	return c.answer(s, func(o *output) {
		o.line("relationship %s, %s", s.ID, standing(s))
		o.fields(endFields(s))
		if s.State == replicator.StateAwaitingAuthorization {
			o.line("on the target: tandemfs relationship authorize %s", s.ID)
		}
	})
}

func authorizeRelationship(ctx context.Context, c *call) error {
	s, err := c.client.Relationship(ctx, c.Args().First())
	if err != nil {
		return err
	}
	request := replicator.AuthorizeRequest{
		AllowNonEmpty: c.Bool("allow-non-empty"), SourceFingerprint: c.String("source-fingerprint"),
	}
	if request.CreateDir, err = absolute(c.String("create")); err != nil {
		return err
	}
	if request.SourceFingerprint == "" {
		request.SourceFingerprint = s.Source.Fingerprint // what is shown is what is trusted, even if it changes meanwhile
	}
	if err := c.confirm(ctx, proposal(s, request), "Trust this fingerprint and begin?"); err != nil {
		return err
	}
	s, err = c.client.AuthorizeRelationship(ctx, s.ID, request)
	return c.done(s, err, "authorized")
}

// proposal says what an authorization is about to allow.
func proposal(s replicator.Status, r replicator.AuthorizeRequest) string {
	var text strings.Builder
	o := &output{to: &text}
	o.line("Relationship %s", s.ID)
	o.fields([][2]string{
		{"source", fmt.Sprintf("volume %s on node %s", s.Source.Volume, s.Source.Node)},
		{"directory there", s.Source.Path},
		{"address", s.Source.Address},
		{"fingerprint", s.Source.Fingerprint},
		{"target", targetText(s, r)},
	})
	if r.AllowNonEmpty {
		o.line("What is in the target volume and not in the source will be removed.")
	}
	o.line("The target volume becomes read-only here; only the source changes it.")
	return strings.TrimSuffix(text.String(), "\n")
}

func targetText(s replicator.Status, r replicator.AuthorizeRequest) string {
	text := fmt.Sprintf("volume %s of this node", s.Target.Volume)
	switch {
	case r.CreateDir != "":
		text += ", to be made, protecting " + r.CreateDir
	case s.Target.Path != "":
		text += ", " + s.Target.Path
	}
	return text
}

func enableRelationship(ctx context.Context, c *call, enabled bool) error {
	s, err := c.client.EnableRelationship(ctx, c.Args().First(), enabled)
	if enabled {
		return c.done(s, err, "enabled")
	}
	return c.done(s, err, "disabled")
}

func reconcileRelationship(ctx context.Context, c *call) error {
	s, err := c.client.Relationship(ctx, c.Args().First())
	if err != nil {
		return err
	}
	warning := fmt.Sprintf("The target %s becomes what the source %s is now: what only the target has is lost.", place(s.Target), place(s.Source))
	if err := c.confirm(ctx, warning, "Go on?"); err != nil {
		return err
	}
	s, err = c.client.ReconcileRelationship(ctx, s.ID)
	return c.done(s, err, "will be reconciled with the next transfer")
}

func deleteRelationship(ctx context.Context, c *call) error {
	s, err := c.client.Relationship(ctx, c.Args().First())
	if err != nil {
		return err
	}
	now := (&output{now: c.env.Now}).moment
	if err := c.confirm(ctx, deletion(s, now(s.RecoveryPoint.Time)), "Delete the relationship?"); err != nil {
		return err
	}
	if s, err = c.client.DeleteRelationship(ctx, s.ID); err != nil {
		return err
	}
	return c.answer(s, func(o *output) {
		o.line("relationship %s deleted", s.ID)
		if s.Role == replicator.RoleSource && s.State != replicator.StateEnded && s.Job == replicator.JobDisconnected {
			o.line("note: node %s could not be reached before: unless it has deleted the relationship by itself, delete it there too. "+
				"Until then %s stays read-only", s.Target.Node, place(s.Target))
		}
	})
}

// deletion says what the end of a relationship means; point is the recovery point's time in words.
func deletion(s replicator.Status, point string) string {
	text := fmt.Sprintf("Relationship %s, from %s to %s, ends for good. Both sides keep their files.\n",
		s.ID, place(s.Source), place(s.Target))
	if s.State == replicator.StateAwaitingAuthorization {
		return text + "It was not authorized yet."
	}
	text += fmt.Sprintf("The target %s becomes writable.\n", place(s.Target))
	if pointUnknown(s) {
		return text + "Its recovery point is not known while volume " + s.Source.Volume + " cannot be used."
	}
	if s.RecoveryPoint.Epoch == 0 {
		return text + "It has no recovery point yet: what is there is incomplete."
	}
	text += "Its recovery point: " + point
	if s.Job == replicator.JobRunning {
		text += "\nA transfer is under way: part of what is there will be newer than that."
	}
	return text
}

// done answers a command that changes a relationship and has no more to say.
func (c *call) done(s replicator.Status, err error, what string) error {
	if err != nil {
		return err
	}
	return c.answer(s, func(o *output) {
		o.line("relationship %s %s", s.ID, what)
	})
}

func listRelationships(ctx context.Context, c *call) error {
	all, err := c.client.Relationships(ctx)
	if err != nil {
		return err
	}
	return c.answer(api.RelationshipList{Relationships: all}, func(o *output) {
		if len(all) == 0 {
			o.line("no relationships yet: `tandemfs relationship create` proposes one")
			return
		}
		short := shortIDs(all)
		rows := [][]string{{"ID", "ROLE", "SOURCE", "TARGET", "STANDING", "RECOVERY POINT", "BEHIND"}}
		for i, s := range all {
			rows = append(rows, []string{short[i], string(s.Role), place(s.Source), place(s.Target),
				standing(s), orDash(o.moment(s.RecoveryPoint.Time)), orDash(behind(s.RecoveryPoint))})
		}
		o.table(rows)
	})
}

// shortIDs abbreviates ids to what still tells them apart, eight characters at least.
func shortIDs(all []replicator.Status) []string {
	unique := func(length int) bool {
		seen := map[string]bool{}
		for _, s := range all {
			prefix := s.ID[:min(length, len(s.ID))]
			if seen[prefix] {
				return false
			}
			seen[prefix] = true
		}
		return true
	}
	length := 8
	for longest := 64; length < longest && !unique(length); {
		length++
	}
	short := make([]string, len(all))
	for i, s := range all {
		short[i] = s.ID[:min(length, len(s.ID))]
	}
	return short
}

func showStatus(ctx context.Context, c *call) error {
	if c.Bool("watch") {
		return watch(ctx, c)
	}
	s, err := c.client.Relationship(ctx, c.Args().First())
	if err != nil {
		return err
	}
	return c.answer(s, func(o *output) { writeStatus(o, s) })
}

// relationshipIDs is for the shell's completion, which has no use for an error.
func relationshipIDs(ctx context.Context, client *api.Client) []string {
	all, _ := client.Relationships(ctx)
	var ids []string
	for _, s := range all {
		ids = append(ids, s.ID)
	}
	return ids
}
