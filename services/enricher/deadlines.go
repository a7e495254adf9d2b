package enricher

import (
	"bytes"
	"cmp"
	"container/heap"
	"math"
	"slices"
)

// never is the deadline of something that waits for nothing.
const never = math.MaxInt64

// waiting is an entity that time alone can change.
type waiting interface {
	// deadline returns the alive time at which it wants to be looked at.
	deadline() int64
	// rank orders the entities of one deadline, and entityUID those of one rank.
	rank() int
	entityUID() []byte
	timer() *timer
}

// timer is an entity's place in the deadlines. The zero value is in none.
type timer struct {
	due    int64
	queued bool
	index  int
}

// deadlines finds what is due without looking at what is not. An entity's
// deadline mostly moves later, with every message; its place in the heap then
// stays where it is and is corrected when it comes up, so that a message costs
// nothing here. What is returned depends on the deadlines alone, never on the
// places, and is therefore the same after a restart.
type deadlines struct{ queue []waiting }

// schedule makes sure that the entity is found when its deadline comes.
func (d *deadlines) schedule(w waiting) {
	due := w.deadline()
	t := w.timer()
	switch {
	case due == never || t.queued && t.due <= due:
	case t.queued:
		t.due = due
		heap.Fix(d, t.index)
	default:
		t.due = due
		heap.Push(d, w)
	}
}

// due returns everything whose deadline has come, ordered by deadline, rank
// and uid, and takes it out.
func (d *deadlines) due(aliveMs int64) []waiting {
	var due []waiting
	for len(d.queue) > 0 && d.queue[0].timer().due <= aliveMs {
		w := heap.Pop(d).(waiting)
		switch deadline := w.deadline(); {
		case deadline <= aliveMs:
			due = append(due, w)
		default:
			d.schedule(w)
		}
	}
	slices.SortFunc(due, func(a, b waiting) int {
		return cmp.Or(cmp.Compare(a.deadline(), b.deadline()), cmp.Compare(a.rank(), b.rank()),
			bytes.Compare(a.entityUID(), b.entityUID()))
	})
	return due
}

// The methods below are heap.Interface.

func (d *deadlines) Len() int           { return len(d.queue) }
func (d *deadlines) Less(i, j int) bool { return d.queue[i].timer().due < d.queue[j].timer().due }

func (d *deadlines) Swap(i, j int) {
	d.queue[i], d.queue[j] = d.queue[j], d.queue[i]
	d.queue[i].timer().index = i
	d.queue[j].timer().index = j
}

func (d *deadlines) Push(x any) {
	w := x.(waiting)
	t := w.timer()
	t.queued, t.index = true, len(d.queue)
	d.queue = append(d.queue, w)
}

func (d *deadlines) Pop() any {
	last := len(d.queue) - 1
	w := d.queue[last]
	d.queue[last] = nil
	d.queue = d.queue[:last]
	w.timer().queued = false
	return w
}
