package embedded

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
)

// exception is an error in ClickHouse's terms.
type exception struct {
	code    int
	message string // "Code: 60. DB::Exception: …"
	status  int    // HTTP status
}

func (e *exception) Error() string { return e.message }

var exceptionCodeRe = regexp.MustCompile(`Code: (\d+)\.`)

// parseException reads the code out of the library's text. Text without one
// gets code 1001 (STD_EXCEPTION), as ClickHouse gives to foreign exceptions.
func parseException(message string) *exception {
	if m := exceptionCodeRe.FindStringSubmatch(message); m != nil {
		if code, err := strconv.Atoi(m[1]); err == nil {
			return &exception{code: code, message: message, status: http.StatusInternalServerError}
		}
	}
	return newException(http.StatusInternalServerError, 1001, "STD_EXCEPTION", "%s", message)
}

// newException words an error of the HTTP layer as ClickHouse would; code and
// name are ClickHouse's.
func newException(status, code int, name, format string, args ...any) *exception {
	return &exception{
		code:    code,
		message: fmt.Sprintf("Code: %d. DB::Exception: %s. (%s)", code, fmt.Sprintf(format, args...), name),
		status:  status,
	}
}

// asException returns err itself when it is an exception, else err worded as
// one.
func asException(err error) *exception {
	var e *exception
	if errors.As(err, &e) {
		return e
	}
	var body *bodyError
	if errors.As(err, &body) {
		return newException(http.StatusBadRequest, 33, "CANNOT_READ_ALL_DATA", "%s", err)
	}
	return newException(http.StatusInternalServerError, 1001, "STD_EXCEPTION", "%s", err)
}
