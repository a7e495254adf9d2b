package sink

import (
	"context"
	"errors"
	"fmt"

	"github.com/callscope/callscope/internal/erasures"
)

// Erasures says who must not be shown.
type Erasures interface {
	// Current gives the erasures that were acknowledged before the call.
	Current(ctx context.Context) (*erasures.View, error)
}

// errErasedMeanwhile: an erasure came after the rows of a range were made.
var errErasedMeanwhile = errors.New("an erasure came in meanwhile")

// insertErased stores a range without erased users.
//
// `callscope erase` first writes its erasure and then rewrites the rows that are stored. A row that shows the user would
// stay only if it were made before the erasure was written, and stored after the rewriting. It cannot be: behind every
// insertion, and before the range is done, the topic's end is asked for once more. An erasure that was acknowledged
// before the rows were stored is seen then at the latest, and the range is made and stored again without the user, under
// other tokens; rows have the same keys and versions, so the later ones stand. An erasure that is acknowledged after that
// is one whose rewriting begins when the rows are there. Neither argument needs a clock, so a process that slept, or a
// store that was away, makes no difference. A sink that dies in between leaves its plan, and its successor makes the
// range with the erasures of then.
func (p *partition) insertErased(ctx context.Context, s *span) ([]reject, error) {
	for {
		rejects, err := p.insertAll(ctx, s)
		if err == nil {
			err = p.unchanged(ctx, s)
		}
		if !errors.Is(err, errErasedMeanwhile) {
			return rejects, err
		}
		p.logger.Info("making a range again without a user that was erased meanwhile", "topic", p.topic, "partition", p.number, "start", s.start, "end", s.end)
		if err := s.remake(ctx); err != nil {
			return nil, err
		}
	}
}

// unchanged returns errErasedMeanwhile where the range's rows were made with other erasures than those of now.
func (p *partition) unchanged(ctx context.Context, s *span) error {
	view, err := p.currentErasures(ctx)
	if err != nil {
		return err
	}
	if view.Position() != s.erased.Position() {
		return errErasedMeanwhile
	}
	return nil
}

// currentErasures waits until they are known: without them nothing may be stored.
func (p *partition) currentErasures(ctx context.Context) (view *erasures.View, err error) {
	if p.erasures == nil {
		return nil, nil
	}
	err = p.retry(ctx, "erasures", func(error) bool { return true }, func() error {
		view, err = p.erasures.Current(ctx)
		return err
	})
	return view, err
}

func prepareOf(view *erasures.View) Prepare {
	if view.Position() == 0 {
		return nil
	}
	return view.Prepare
}

// remake makes the rows of a range again with the erasures of now. Records that gave none before give none now: an
// erasure takes no record away.
func (s *span) remake(ctx context.Context) error {
	view, err := s.p.currentErasures(ctx)
	if err != nil {
		return err
	}
	rejected := make(map[int]bool)
	for _, r := range s.rejects {
		rejected[r.record] = true
	}
	s.erased = view
	s.blocks.reset()
	for i, r := range s.records {
		if rejected[i] {
			continue
		}
		if _, err := s.blocks.decode(prepareOf(view), r, i, s.start); err != nil {
			return fmt.Errorf("making rows again: %w", err)
		}
	}
	return nil
}

// token names the rows of the range in one table. With other erasures they may be other rows.
func (s *span) token(table string) string {
	text := token(s.firstUID, s.p.topic, s.p.number, s.start, s.end, table, s.p.schema)
	if position := s.erased.Position(); position > 0 {
		text += fmt.Sprintf("/erasures-%d", position)
	}
	return text
}
