package stream

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// newFranz is a second, independent Kafka client for what kafka-go cannot do: transactions and deleting records.
func newFranz(t *testing.T, k cluster, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(k.addr)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func kmsgDeleteRecords(topic string, offset int64) *kmsg.DeleteRecordsRequest {
	req := kmsg.NewPtrDeleteRecordsRequest()
	rt := kmsg.NewDeleteRecordsRequestTopic()
	rt.Topic = topic
	rp := kmsg.NewDeleteRecordsRequestTopicPartition()
	rp.Partition, rp.Offset = 0, offset
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	return req
}

// handMember is a group member that joined by hand and does not join again when a rebalance asks it to.
type handMember struct {
	cl         *kgo.Client
	id         string
	generation int32
}

func joinByHand(t *testing.T, cl *kgo.Client, topic string) *handMember {
	t.Helper()
	meta := kmsg.NewConsumerMemberMetadata()
	meta.Topics = []string{topic}
	req := kmsg.NewPtrJoinGroupRequest()
	req.Group, req.ProtocolType = "g", "consumer"
	req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = 60_000, 60_000
	proto := kmsg.NewJoinGroupRequestProtocol()
	proto.Name, proto.Metadata = "range", meta.AppendTo(nil)
	req.Protocols = append(req.Protocols, proto)
	for {
		res, err := req.RequestWith(t.Context(), cl)
		if err != nil {
			t.Fatal(err)
		}
		if req.MemberID == "" && res.ErrorCode == kerr.MemberIDRequired.Code {
			req.MemberID = res.MemberID
			continue
		}
		if res.ErrorCode != 0 {
			t.Fatalf("joining by hand: code %d", res.ErrorCode)
		}
		sync := kmsg.NewPtrSyncGroupRequest()
		sync.Group, sync.MemberID, sync.Generation = "g", res.MemberID, res.Generation
		if res, err := sync.RequestWith(t.Context(), cl); err != nil || res.ErrorCode != 0 {
			t.Fatalf("syncing by hand: %v, %v", res, err)
		}
		return &handMember{cl, res.MemberID, res.Generation}
	}
}

func (m *handMember) heartbeat(t *testing.T) {
	t.Helper()
	req := kmsg.NewPtrHeartbeatRequest()
	req.Group, req.MemberID, req.Generation = "g", m.id, m.generation
	if _, err := req.RequestWith(t.Context(), m.cl); err != nil {
		t.Fatal(err)
	}
}
