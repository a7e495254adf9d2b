// Command generate compiles the .proto files of this module into Go code,
// without protoc: protocompile makes the descriptors and the plugins are run
// as Go tools of this module. It takes no arguments and is run from the
// module's root by `make proto`.
package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

const (
	protoRoot = "proto"
	module    = "module=github.com/callscope/callscope"
)

// plugins in the order in which they run; each is a tool of go.mod.
var plugins = []struct{ tool, parameter string }{
	{"protoc-gen-go", module},
	{"protoc-gen-go-vtproto", module + ",features=marshal+unmarshal+size"},
}

func main() {
	if err := generate(); err != nil {
		fmt.Fprintln(os.Stderr, "generating protobuf code:", err)
		os.Exit(1)
	}
}

func generate() error {
	found, err := filepath.Glob(filepath.Join(protoRoot, "callscope", "v1", "*.proto"))
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return fmt.Errorf("no .proto files below %s: run this from the module's root", protoRoot)
	}
	files := make([]string, len(found))
	for i, path := range found {
		rel, err := filepath.Rel(protoRoot, path)
		if err != nil {
			return err
		}
		files[i] = filepath.ToSlash(rel)
	}
	sort.Strings(files)

	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{protoRoot}}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	compiled, err := compiler.Compile(context.Background(), files...)
	if err != nil {
		return err
	}
	var descriptors []*descriptorpb.FileDescriptorProto
	seen := map[string]bool{}
	var add func(protoreflect.FileDescriptor)
	add = func(file protoreflect.FileDescriptor) {
		if seen[file.Path()] {
			return
		}
		seen[file.Path()] = true
		for i := range file.Imports().Len() {
			add(file.Imports().Get(i).FileDescriptor)
		}
		descriptors = append(descriptors, protodesc.ToFileDescriptorProto(file))
	}
	for _, file := range compiled {
		add(file)
	}
	for _, plugin := range plugins {
		if err := run(plugin.tool, plugin.parameter, files, descriptors); err != nil {
			return fmt.Errorf("running %s: %w", plugin.tool, err)
		}
	}
	return nil
}

// run gives one plugin the descriptors, as protoc would, and writes the files
// that it answers with below the module's root.
func run(tool, parameter string, files []string, descriptors []*descriptorpb.FileDescriptorProto) error {
	request, err := proto.Marshal(&pluginpb.CodeGeneratorRequest{
		FileToGenerate: files, Parameter: &parameter, ProtoFile: descriptors,
	})
	if err != nil {
		return err
	}
	cmd := exec.Command("go", "tool", tool)
	cmd.Stdin = bytes.NewReader(request)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return err
	}
	var response pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(out, &response); err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	if response.GetError() != "" {
		return fmt.Errorf("%s", response.GetError())
	}
	for _, file := range response.File {
		path := filepath.FromSlash(file.GetName())
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(file.GetContent()), 0o644); err != nil {
			return err
		}
	}
	return nil
}
