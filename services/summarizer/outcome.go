package summarizer

import (
	"github.com/google/uuid"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// verdict is a conference's outcome with what it was concluded from.
type verdict struct {
	outcome  string
	evidence evidence
}

// evidence holds no ids of users, so that nothing in it has to be erased.
type evidence struct {
	Rule         string              `json:"rule"`
	Participants participantEvidence `json:"participants"`
	Links        linkEvidence        `json:"links"`
	Unanswered   bool                `json:"unanswered,omitempty"`
	Failures     []failureEvidence   `json:"failures,omitempty"` // the first few
}

type participantEvidence struct {
	Connected int `json:"connected"`
	Failed    int `json:"failed"`
	Aborted   int `json:"aborted"`
	Idle      int `json:"idle"`
	Lost      int `json:"lost"`
}

type linkEvidence struct {
	Established int `json:"established"`
	Failed      int `json:"failed"`
	Dropped     int `json:"dropped"`
	Aborted     int `json:"aborted"`
}

type failureEvidence struct {
	ParticipantUID string `json:"participant_uid"`
	Function       string `json:"function,omitempty"`
	Reason         string `json:"reason,omitempty"`
}

const maxFailureEvidence = 5

// outcome decides how a conference went (quality.md 3.1, design 4). It says
// nothing while the conference is open: a call that fails now may still work.
//
// A link is what a participant had towards one remote: its fabrics in the
// order of their first message. A fabric that failed or was cut off does not
// count once a later one towards the same remote was set up. A link is
// established if a fabric of it was set up and none failed after that; dropped
// if, on top, the last one that was set up was dropped; failed if a fabric
// failed and none was set up after it; else aborted.
//
// A participant is connected if any fabric of it was set up; else failed if a
// link failed or a setup failure without a fabric was reported (getUserMedia);
// else aborted if it had a fabric; else idle. A connected participant is lost
// if all its established links were dropped, or if it fell silent (idle).
//
//	rule                                                             outcome
//	open        the conference is open                               none
//	no evidence nobody had a fabric, a failure, an unanswered call   none
//	1           nobody connected, somebody failed                    totalFailure
//	2           nobody connected, callUnAnswered reported            missed
//	3           nobody connected, every aborted link goes to a       missed
//	            remote user who never had a fabric
//	4           nobody connected, otherwise                          aborted
//	5           somebody connected, a participant or a link failed   partialFailure
//	6           everybody who was connected was lost, and at         dropped
//	            least one link was dropped
//	7           otherwise                                            success
//
// It follows that a peer that leaves, or hangs up while connecting beside a
// call that works, is no failure; that everybody falling silent without a
// dropped link is a clean timeout, a success; and that an error on a fabric
// that was set up changes nothing.
func (c *conference) outcome() verdict {
	var v verdict
	e := &v.evidence
	missed := true // every aborted link goes to a user who never had a fabric
	tried := map[string]bool{}
	for _, p := range c.participants {
		for _, f := range p.fabrics {
			if f.facts != nil {
				tried[p.userID] = true
			}
		}
	}
	for _, p := range c.participants {
		if p.facts == nil {
			continue
		}
		e.Unanswered = e.Unanswered || p.unanswered
		links, connected := p.links()
		var own linkEvidence
		var failed *failureEvidence
		for _, l := range links {
			switch {
			case l.failed != nil:
				own.Failed++
				if failed == nil {
					failed = &failureEvidence{Function: l.failed.FailureFunction, Reason: l.failed.FailureReason}
				}
			case l.setUp:
				own.Established++
				if l.dropped {
					own.Dropped++
				}
			default:
				own.Aborted++
				if tried[l.remoteID] || l.remoteID == "" || l.server {
					missed = false
				}
			}
		}
		if !connected && p.setupFailed && failed == nil {
			failed = &failureEvidence{Function: p.failureFunction, Reason: p.failureReason}
		}
		if failed != nil && len(e.Failures) < maxFailureEvidence {
			failed.ParticipantUID = uidText(p.uid)
			e.Failures = append(e.Failures, *failed)
		}
		switch {
		case connected:
			e.Participants.Connected++
			if own.Established > 0 && own.Dropped == own.Established || p.facts.LeftReason == "idle" {
				e.Participants.Lost++
			}
		case failed != nil:
			e.Participants.Failed++
		case len(links) > 0:
			e.Participants.Aborted++
		default:
			e.Participants.Idle++
		}
		e.Links.Established += own.Established
		e.Links.Failed += own.Failed
		e.Links.Dropped += own.Dropped
		e.Links.Aborted += own.Aborted
	}
	v.outcome, e.Rule = decide(c.ended(), e, missed)
	return v
}

// uidText is a uid as SQL shows it, empty where it is none.
func uidText(uid []byte) string {
	id, err := uuid.FromBytes(uid)
	if err != nil {
		return ""
	}
	return id.String()
}

func decide(ended bool, e *evidence, missed bool) (outcome, rule string) {
	p := e.Participants
	switch {
	case !ended:
		return "", "open"
	case p.Connected == 0 && p.Failed > 0:
		return "totalFailure", "1"
	case p.Connected == 0 && e.Unanswered:
		return "missed", "2"
	case p.Connected == 0 && p.Aborted > 0 && missed:
		return "missed", "3"
	case p.Connected == 0 && p.Aborted > 0:
		return "aborted", "4"
	case p.Connected == 0:
		return "", "no evidence"
	case p.Failed > 0 || e.Links.Failed > 0:
		return "partialFailure", "5"
	case p.Lost == p.Connected && e.Links.Dropped > 0:
		return "dropped", "6"
	}
	return "success", "7"
}

// link is what a participant had towards one remote.
type link struct {
	remoteID string
	server   bool
	setUp    bool
	dropped  bool                     // the last fabric that was set up
	failed   *callscopev1.FabricFacts // a fabric that failed, none set up after it
}

// links returns the participant's links in the order of their first fabrics,
// and whether any fabric was ever set up. A fabric without a remote is a link
// of its own.
func (p *participant) links() (links []*link, connected bool) {
	byRemote := map[string]*link{}
	for _, f := range p.fabrics {
		if f.facts == nil {
			continue
		}
		l := byRemote[f.remoteID]
		if l == nil || f.remoteID == "" {
			l = &link{remoteID: f.remoteID}
			byRemote[f.remoteID] = l
			links = append(links, l)
		}
		l.server = l.server || f.facts.RemoteType == "server"
		switch f.facts.Outcome {
		case callscopev1.FabricOutcome_FABRIC_OUTCOME_SETUP, callscopev1.FabricOutcome_FABRIC_OUTCOME_DROPPED:
			connected = true
			l.setUp, l.failed = true, nil
			l.dropped = f.facts.Outcome == callscopev1.FabricOutcome_FABRIC_OUTCOME_DROPPED
		case callscopev1.FabricOutcome_FABRIC_OUTCOME_FAILED:
			if l.failed == nil {
				l.failed = f.facts
			}
		}
	}
	return links, connected
}
