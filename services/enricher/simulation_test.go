package enricher

import (
	"math/rand/v2"
	"testing"

	"github.com/callscope/callscope/internal/stage"
	"github.com/callscope/callscope/internal/stage/stagetest"
)

// impatient wants no ticks for grace and duplicate windows alone: the simulator
// waits only three minutes for rest.
type impatient struct{ *Machine }

func (m impatient) WantsTicks() bool {
	for _, room := range m.rooms {
		for _, c := range room {
			if c.open() {
				return true
			}
		}
	}
	return false
}

// The stage runtime with this machine gives what a fold of its final log gives,
// whatever crashes, comes back from the dead or is written twice.
func TestSimulatedCrashes(t *testing.T) {
	var total stagetest.Result
	for seed := range uint64(60) {
		name := []string{"two-users-default-config", "failed-setup", "rn-3.24.6-wss"}[seed%3]
		messages := readCapture(t, name)
		next := 0
		result, err := stagetest.Run(stagetest.Options{
			Seed:    seed,
			Stage:   StageConfig(Config{}, func(int32) stage.Machine { return impatient{NewMachine()} }),
			Records: len(messages),
			Next: func(*rand.Rand) (key, value []byte) {
				raw := messages[next%len(messages)].raw
				next++
				value, err := raw.MarshalVT()
				if err != nil {
					t.Fatal(err)
				}
				return []byte(roomKey(raw.Observed.AppId, raw.Claimed.ConferenceId)), value
			},
		})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		total.Add(result)
	}
	if total.Crashes == 0 || total.Zombies == 0 || total.Dropped == 0 || total.Rejected != 0 {
		t.Errorf("nothing happened: %+v", total)
	}
	t.Logf("%d crashes, %d zombies, %d inputs, %d outputs", total.Crashes, total.Zombies, total.Inputs, total.Outputs)
}
