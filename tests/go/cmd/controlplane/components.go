package main

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/server/v3/embed"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	cliflag "k8s.io/component-base/cli/flag"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	apioptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	kcm "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kcmoptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	scheduleroptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"
)

// part is one running component; done carries the error it ended with.
type part struct {
	name string
	done chan error
}

// start runs a component in a goroutine. The commands of the components are not used, because each of them wants
// to own the process's signals; their options and Run functions are what remains of them.
func start(name string, run func() error) *part {
	p := &part{name: name, done: make(chan error, 1)}
	go func() {
		err := run()
		if err == nil {
			err = fmt.Errorf("%s returned", name)
		}
		p.done <- err
	}()
	return p
}

// wait stops a component and gives it ten seconds.
func (p *part) wait(stop context.CancelFunc) {
	stop()
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
	}
}

// parse gives flags to a component in the form that its command line takes.
func parse(sets cliflag.NamedFlagSets, args []string) error {
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	for _, f := range sets.FlagSets {
		fs.AddFlagSet(f)
	}
	return fs.Parse(args)
}

// startEtcd listens on two free ports of loopback.
func startEtcd(c config) (*embed.Etcd, error) {
	cfg := embed.NewConfig()
	cfg.Dir = filepath.Join(c.dir, "etcd")
	cfg.UnsafeNoFsync = true
	cfg.LogLevel = "error"
	cfg.LogOutputs = []string{"stderr"}
	client, err := freeURL()
	if err != nil {
		return nil, err
	}
	peer, err := freeURL()
	if err != nil {
		return nil, err
	}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	etcd, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, err
	}
	select {
	case <-etcd.Server.ReadyNotify():
		return etcd, nil
	case err := <-etcd.Err():
		return nil, err
	case <-time.After(time.Minute):
		etcd.Close()
		return nil, fmt.Errorf("not ready after a minute")
	}
}

func freeURL() (url.URL, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return url.URL{}, fmt.Errorf("%w (is the loopback interface up?)", err)
	}
	defer l.Close()
	return url.URL{Scheme: "http", Host: l.Addr().String()}, nil
}

func etcdURL(e *embed.Etcd) string { return e.Config().ListenClientUrls[0].String() }

func startAPIServer(ctx context.Context, c config, f files, etcd string) *part {
	return start("kube-apiserver", func() error {
		s := apioptions.NewServerRunOptions()
		reconciler := "lease"
		if c.bind.IsLoopback() {
			// Endpoints of the Service "kubernetes" may not be loopback addresses.
			reconciler = "none"
		}
		err := parse(s.Flags(), []string{
			"--endpoint-reconciler-type=" + reconciler,
			"--v=" + fmt.Sprint(c.verbosity),
			"--etcd-servers=" + etcd,
			"--bind-address=" + c.bind.String(),
			"--advertise-address=" + c.bind.String(),
			"--secure-port=" + fmt.Sprint(c.securePort),
			"--service-cluster-ip-range=" + c.serviceCIDR,
			"--client-ca-file=" + f.ca,
			"--tls-cert-file=" + f.apiCert,
			"--tls-private-key-file=" + f.apiKey,
			// The API server calls the node's port 10250 with this identity, as kubeadm's control planes do.
			"--kubelet-client-certificate=" + f.kubeletPair + ".crt",
			"--kubelet-client-key=" + f.kubeletPair + ".key",
			"--kubelet-preferred-address-types=InternalIP",
			"--service-account-key-file=" + f.saPub,
			"--service-account-signing-key-file=" + f.saKey,
			"--service-account-issuer=https://kubernetes.default.svc",
			"--requestheader-client-ca-file=" + f.frontCA,
			"--requestheader-allowed-names=front-proxy-client",
			"--requestheader-username-headers=X-Remote-User",
			"--requestheader-group-headers=X-Remote-Group",
			"--requestheader-extra-headers-prefix=X-Remote-Extra-",
			"--proxy-client-cert-file=" + f.frontCert,
			"--proxy-client-key-file=" + f.frontKey,
			"--authorization-mode=Node,RBAC",
			"--enable-admission-plugins=NodeRestriction",
			"--enable-bootstrap-token-auth=true",
			"--allow-privileged=true",
			"--profiling=false",
			// The last endpoint of a stopped API server must not delay the stop.
			"--shutdown-delay-duration=0s",
			"--shutdown-send-retry-after=false",
		})
		if err != nil {
			return err
		}
		if err := s.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
			return err
		}
		completed, err := s.Complete(ctx)
		if err != nil {
			return err
		}
		if errs := completed.Validate(); len(errs) != 0 {
			return utilerrors.NewAggregate(errs)
		}
		return apiserver.Run(ctx, completed)
	})
}

func startControllerManager(ctx context.Context, c config, f files) *part {
	return start("kube-controller-manager", func() error {
		s, err := kcmoptions.NewKubeControllerManagerOptions()
		if err != nil {
			return err
		}
		all, disabled, aliases := kcm.KnownControllers(), kcm.ControllersDisabledByDefault(), kcm.ControllerAliases()
		args := []string{
			"--kubeconfig=" + f.admin,
			"--authentication-kubeconfig=" + f.admin,
			"--authorization-kubeconfig=" + f.admin,
			"--bind-address=127.0.0.1",
			"--secure-port=0",
			"--leader-elect=false",
			"--use-service-account-credentials=true",
			"--service-account-private-key-file=" + f.saKey,
			"--root-ca-file=" + f.ca,
			"--cluster-signing-cert-file=" + f.ca,
			"--cluster-signing-key-file=" + f.caKey,
			"--controllers=*,bootstrapsigner,tokencleaner",
			"--allocate-node-cidrs=true",
			"--cluster-cidr=" + c.clusterCIDR,
			"--service-cluster-ip-range=" + c.serviceCIDR,
		}
		sets := s.Flags(all, disabled, aliases)
		if err := parse(sets, append(args, nodeMasks(c.clusterCIDR)...)); err != nil {
			return err
		}
		s.ParsedFlags = &sets
		cfg, err := s.Config(ctx, all, disabled, aliases)
		if err != nil {
			return err
		}
		return kcm.Run(ctx, cfg.Complete())
	})
}

// nodeMasks makes IPv6 node ranges small enough for a /48 ... /112 cluster range of a test.
func nodeMasks(cidrs string) []string {
	var out []string
	for _, text := range strings.Split(cidrs, ",") {
		_, cidr, err := net.ParseCIDR(text)
		if err != nil || cidr.IP.To4() != nil {
			continue
		}
		ones, _ := cidr.Mask.Size()
		out = append(out, fmt.Sprintf("--node-cidr-mask-size-ipv6=%d", min(ones+8, 120)))
	}
	if len(out) > 0 && !strings.Contains(cidrs, ",") {
		out = []string{strings.Replace(out[0], "-ipv6", "", 1)}
	}
	return out
}

func startScheduler(ctx context.Context, f files) *part {
	return start("kube-scheduler", func() error {
		opts := scheduleroptions.NewOptions()
		err := parse(*opts.Flags, []string{
			"--kubeconfig=" + f.admin,
			"--authentication-kubeconfig=" + f.admin,
			"--authorization-kubeconfig=" + f.admin,
			"--bind-address=127.0.0.1",
			"--secure-port=0",
			"--leader-elect=false",
		})
		if err != nil {
			return err
		}
		cc, sched, err := scheduler.Setup(ctx, opts)
		if err != nil {
			return err
		}
		return scheduler.Run(ctx, cc, sched)
	})
}
