// Command echo is the program of the test images: a static HTTP and UDP server that says who answered.
//
//	/              "POD_OR_HOSTNAME ADDRESS CLIENT" on one line, of this end and the other end of the connection
//	/hostname      the host name alone; what a UDP datagram is answered with, too
//	/healthz       200, or 503 while it terminates and after /unhealthy was asked
//	/unhealthy     makes /healthz fail from now on, /healthy makes it succeed
//	/slow?ms=N     answers after N milliseconds
//	/exit?code=N   ends the process with that code
//	/env           the environment, one variable per line
//	/file?path=P   a file of the container
//	/version       the text given by --version, else $ECHO_VERSION: it tells image versions apart
//	/page/...      files below --page, when it is set
//
// SIGTERM: it goes on answering for --delay, then closes the listeners, finishes what is being answered and exits 0.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// state is what handlers share.
type state struct {
	version     string
	hostname    string
	page        string
	unhealthy   atomic.Bool
	terminating atomic.Bool
}

func main() {
	tcp := flag.String("tcp", "8080", "TCP ports to serve HTTP on, separated by commas")
	udp := flag.String("udp", "", "UDP ports to answer on, separated by commas")
	delay := flag.Duration("delay", 0, "how long to go on answering after SIGTERM")
	text := flag.String("version", os.Getenv("ECHO_VERSION"), "what /version answers")
	page := flag.String("page", "", "directory whose files /page/ serves")
	flag.Parse()
	host, _ := os.Hostname()
	s := &state{version: *text, hostname: host, page: *page}
	if err := serve(s, split(*tcp), split(*udp), *delay); err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
}

func split(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
}

func serve(s *state, tcp, udp []string, delay time.Duration) error {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM, syscall.SIGINT)
	failed := make(chan error, len(tcp)+len(udp))
	server := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 10 * time.Second}
	for _, port := range tcp {
		l, err := net.Listen("tcp", ":"+port)
		if err != nil {
			return err
		}
		go func() { failed <- server.Serve(l) }()
	}
	for _, port := range udp {
		c, err := net.ListenPacket("udp", ":"+port)
		if err != nil {
			return err
		}
		go func() { failed <- s.answer(c) }()
	}
	fmt.Printf("echo %s on tcp %v udp %v\n", s.version, tcp, udp)
	select {
	case err := <-failed:
		return err
	case <-term:
	}
	fmt.Println("terminating")
	s.terminating.Store(true)
	time.Sleep(delay)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return server.Shutdown(ctx)
}

// answer sends the host name back for each datagram.
func (s *state) answer(c net.PacketConn) error {
	buf := make([]byte, 2048)
	for {
		_, from, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		if _, err := c.WriteTo([]byte(s.hostname), from); err != nil && !errors.Is(err, syscall.EPERM) {
			fmt.Fprintln(os.Stderr, "echo: answer to", from, err)
		}
	}
}

func (s *state) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/hostname", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, s.hostname) })
	mux.HandleFunc("/version", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, s.version) })
	mux.HandleFunc("/healthz", s.healthz)
	mux.HandleFunc("/unhealthy", func(http.ResponseWriter, *http.Request) { s.unhealthy.Store(true) })
	mux.HandleFunc("/healthy", func(http.ResponseWriter, *http.Request) { s.unhealthy.Store(false) })
	mux.HandleFunc("/slow", slow)
	mux.HandleFunc("/exit", exit)
	mux.HandleFunc("/env", env)
	mux.HandleFunc("/file", file)
	mux.HandleFunc("/", s.who)
	if s.page != "" {
		mux.Handle("/page/", http.StripPrefix("/page", http.FileServer(http.Dir(s.page))))
	}
	return mux
}

// who prints the name of this end and both addresses of the connection.
func (s *state) who(w http.ResponseWriter, r *http.Request) {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	fmt.Fprintf(w, "%s %s %s\n", s.hostname, local, r.RemoteAddr)
}

func (s *state) healthz(w http.ResponseWriter, _ *http.Request) {
	if s.unhealthy.Load() || s.terminating.Load() {
		http.Error(w, "not healthy", http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

// number reads a query parameter, def when it is absent.
func number(r *http.Request, name string, def int) (int, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return def, nil
	}
	return strconv.Atoi(text)
}

func slow(w http.ResponseWriter, r *http.Request) {
	ms, err := number(r, "ms", 1000)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	select {
	case <-time.After(time.Duration(ms) * time.Millisecond):
		fmt.Fprintln(w, "done")
	case <-r.Context().Done():
	}
}

func exit(w http.ResponseWriter, r *http.Request) {
	code, err := number(r, "code", 1)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	os.Exit(code)
}

func env(w http.ResponseWriter, _ *http.Request) {
	all := os.Environ()
	sort.Strings(all)
	fmt.Fprintln(w, strings.Join(all, "\n"))
}

func file(w http.ResponseWriter, r *http.Request) {
	data, err := os.ReadFile(filepath.Clean(r.URL.Query().Get("path")))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	_, _ = w.Write(data)
}
