// Command controlplane runs a complete Kubernetes control plane in one process: etcd, kube-apiserver,
// kube-controller-manager and kube-scheduler, linked as libraries. It is the real thing that the agent joins in
// tests; nothing in it is imitated.
//
// It makes everything it needs below --dir: a certificate authority, the serving certificate, service account
// keys, the front proxy's certificates and these kubeconfigs:
//
//	admin.kubeconfig            group system:masters
//	node-NAME.kubeconfig        user system:node:NAME, one for each --node
//	kube-proxy.kubeconfig       user system:kube-proxy, bound to ClusterRole system:node-proxier by bootstrap RBAC
//	bootstrap.kubeconfig        a bootstrap token that may ask for a node's client certificate
//
// When /readyz answers, the bootstrap RBAC exists and the default ServiceAccount exists, it prints the line
// "ready" on stdout. SIGTERM or SIGINT stops all four. Data are not synced to disk: a crash loses them, on purpose.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// config is what the flags say.
type config struct {
	dir         string
	bind        net.IP
	securePort  int
	serviceCIDR string
	clusterCIDR string
	nodes       []string
	verbosity   int
}

// names collects a flag that may be given several times.
type names []string

func (n *names) String() string { return strings.Join(*n, ",") }

func (n *names) Set(v string) error {
	if v == "" {
		return errors.New("a node needs a name")
	}
	*n = append(*n, v)
	return nil
}

func parseFlags() (config, error) {
	var c config
	var bind string
	flag.StringVar(&c.dir, "dir", "", "directory for data, certificates and kubeconfigs (required)")
	flag.StringVar(&bind, "bind", "127.0.0.1", "address that the API server listens on and advertises")
	flag.IntVar(&c.securePort, "secure-port", 6443, "port of the API server")
	flag.StringVar(&c.serviceCIDR, "service-cidr", "10.96.0.0/16", "Service range, or an IPv4,IPv6 pair")
	flag.StringVar(&c.clusterCIDR, "cluster-cidr", "10.244.0.0/16", "pod range that node CIDRs come from, or an IPv4,IPv6 pair")
	flag.Var((*names)(&c.nodes), "node", "name of a node to make a kubeconfig for (may be repeated)")
	flag.IntVar(&c.verbosity, "v", 0, "log verbosity of all components")
	flag.Parse()
	if c.dir == "" {
		return c, errors.New("--dir is required: a directory for data, certificates and kubeconfigs")
	}
	if c.bind = net.ParseIP(bind); c.bind == nil {
		return c, fmt.Errorf("--bind %q is not an IP address", bind)
	}
	dir, err := filepath.Abs(c.dir)
	c.dir = dir
	return c, err
}

func main() {
	c, err := parseFlags()
	if err != nil {
		fmt.Fprintln(os.Stderr, "controlplane:", err)
		os.Exit(64)
	}
	// The first signal stops in order; after it the default action is back, so that a second one ends at once.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop)
	if err := run(ctx, c); err != nil {
		fmt.Fprintln(os.Stderr, "controlplane:", err)
		os.Exit(1)
	}
}

// run starts the parts in the order in which they need each other and stops them in the reverse order.
func run(ctx context.Context, c config) error {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	files, err := writeFiles(c)
	if err != nil {
		return fmt.Errorf("certificates and kubeconfigs: %w", err)
	}
	etcd, err := startEtcd(c)
	if err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	defer etcd.Close()

	// The controllers stop before the API server, and that before etcd: each logs no errors about a lost peer.
	apiCtx, stopAPI := context.WithCancel(context.Background())
	api := startAPIServer(apiCtx, c, files, etcdURL(etcd))
	defer api.wait(stopAPI)
	client, err := adminClient(files)
	if err != nil {
		return err
	}
	if err := until(ctx, api, 2*time.Minute, "the API server to be ready", client.apiReady); err != nil {
		return err
	}
	ctlCtx, stopControllers := context.WithCancel(context.Background())
	kcm := startControllerManager(ctlCtx, c, files)
	defer kcm.wait(stopControllers)
	sched := startScheduler(ctlCtx, files)
	defer sched.wait(stopControllers)
	if err := client.ensureBootstrap(ctx, files.bootstrapToken); err != nil {
		return err
	}
	if err := until(ctx, api, 2*time.Minute, "the default ServiceAccount", client.clusterReady); err != nil {
		return err
	}
	fmt.Println("ready")
	select {
	case <-ctx.Done():
		return nil
	case err := <-api.done:
		return fmt.Errorf("kube-apiserver ended: %w", err)
	case err := <-kcm.done:
		return fmt.Errorf("kube-controller-manager ended: %w", err)
	case err := <-sched.done:
		return fmt.Errorf("kube-scheduler ended: %w", err)
	}
}

// until asks check every 100 ms until it holds, and gives up with its last answer.
func until(ctx context.Context, p *part, limit time.Duration, what string, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	last := errors.New("not asked yet")
	for {
		select {
		case err := <-p.done:
			return fmt.Errorf("%s ended while waiting for %s: %v", p.name, what, err)
		case <-ctx.Done():
			return fmt.Errorf("waited for %s: %w", what, last)
		case <-tick.C:
			if last = check(ctx); last == nil {
				return nil
			}
		}
	}
}
