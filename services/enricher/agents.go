package enricher

import (
	"strings"
	"sync"

	"github.com/ua-parser/uap-go/uaparser"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

const (
	// agentCacheSize is how many user agents are remembered: what a parser
	// answers depends on its input alone, so the cache changes only the cost.
	agentCacheSize = 4096
	// maxAgentBytes bounds the work that one user agent can cause. Real ones
	// are shorter than 300 bytes.
	maxAgentBytes = 1024
	// agentUnknown is the parser's word for a user agent it does not know.
	agentUnknown = "Other"
	// reactNative is what the React Native clients send instead of a user agent.
	reactNative = "react-native"
)

// sharedUserAgents makes the one parser that all partitions use: its hundreds
// of expressions take long to compile and are the same for all.
var sharedUserAgents = sync.OnceValue(newUserAgents)

// userAgents reads browser, version and operating system out of user agents.
type userAgents struct{ parser *uaparser.Parser }

type agent struct{ browser, browserVersion, os, osVersion string }

func newUserAgents() *userAgents {
	parser, err := uaparser.New(uaparser.WithCacheSize(agentCacheSize),
		uaparser.WithMode(uaparser.EUserAgentLookUpMode|uaparser.EOsLookUpMode))
	if err != nil {
		panic("compiling the embedded user agent expressions: " + err.Error())
	}
	return &userAgents{parser: parser}
}

// of combines what the user agent tells with what the client says. A client's
// own user agent goes before the one of its HTTP requests; React Native has
// none, so there the client's fields stand alone.
func (u *userAgents) of(endpoint *callscopev1.EndpointInfo, requestAgent string) agent {
	line := endpoint.GetUserAgent()
	if line == "" && endpoint.GetBuildName() == "" {
		line = requestAgent
	}
	var a agent
	if line != "" && line != reactNative {
		line = strings.ToValidUTF8(line[:min(len(line), maxAgentBytes)], "")
		if browser := u.parser.ParseUserAgent(line); browser.Family != agentUnknown {
			a.browser, a.browserVersion = browser.Family, browser.ToVersionString()
		}
		if os := u.parser.ParseOs(line); os.Family != agentUnknown {
			a.os, a.osVersion = os.Family, os.ToVersionString()
		}
	}
	if a.browser == "" {
		a.browser, a.browserVersion = endpoint.GetBuildName(), endpoint.GetBuildVersion()
	}
	if a.browserVersion == "" && a.browser == endpoint.GetBuildName() {
		a.browserVersion = endpoint.GetBuildVersion()
	}
	if a.os == "" {
		a.os, a.osVersion = endpoint.GetOs(), endpoint.GetOsVersion()
	}
	return a
}
