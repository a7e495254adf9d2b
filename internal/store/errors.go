package store

import (
	"errors"

	"github.com/ClickHouse/clickhouse-go/v2"
)

// ErrBadRow: an insert failed because of the rows themselves, so that the same rows can never succeed.
var ErrBadRow = errors.New("a row cannot be stored")

// ErrNoSpace: the server has no room for more rows. Repeating helps once there is.
var ErrNoSpace = errors.New("the ClickHouse server's disk is full: free some, or shorten clickhouse.retention; nothing is lost while Kafka keeps the records")

// spaceCodes are the server's errors for lack of room.
var spaceCodes = map[int32]bool{
	243: true, // NOT_ENOUGH_SPACE
}

// rowCodes are the server's errors that blame the data of a row. Codes that a broken connection or another schema can
// cause too (INCORRECT_DATA, CANNOT_CONVERT_TYPE, CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN …) are not among them: rows would
// be thrown away for somebody else's fault.
var rowCodes = map[int32]bool{
	69:  true, // ARGUMENT_OUT_OF_BOUND
	128: true, // TOO_LARGE_ARRAY_SIZE
	131: true, // TOO_LARGE_STRING_SIZE
	321: true, // VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE
	407: true, // DECIMAL_OVERFLOW
	469: true, // VIOLATED_CONSTRAINT
}

// Permanent reports whether an insert's error is an ErrBadRow. Everything else is transient: networks, overload, and a
// schema that does not fit, which a migration mends.
func Permanent(err error) bool { return errors.Is(err, ErrBadRow) }

// code is ClickHouse's error code, 0 when the error did not come from the server.
func code(err error) int32 {
	var e *clickhouse.Exception
	if errors.As(err, &e) {
		return e.Code
	}
	return 0
}
