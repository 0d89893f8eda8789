package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// files are the paths of what writeFiles made.
type files struct {
	ca, caKey           string
	apiCert, apiKey     string
	saKey, saPub        string
	frontCA             string
	frontCert, frontKey string
	kubeletPair         string
	admin               string
	bootstrapToken      string
}

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	pem  []byte
	key  *ecdsa.PrivateKey
}

func newAuthority(name string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := template(pkix.Name{CommonName: name})
	t.IsCA = true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{cert: cert, pem: pemCert(der), key: key}, err
}

// issue signs a certificate for a new key; hosts make it a serving certificate, none make it a client's.
func (a *authority) issue(subject pkix.Name, ips []net.IP, dns []string) (cert, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	t := template(subject)
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.IPAddresses, t.DNSNames = ips, dns
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if len(ips)+len(dns) > 0 {
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, k.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	key, err = pemKey(k)
	return pemCert(der), key, err
}

func template(subject pkix.Name) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	return &x509.Certificate{
		SerialNumber:          serial,
		Subject:               subject,
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().AddDate(1, 0, 0),
		BasicConstraintsValid: true,
	}
}

func pemCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func pemKey(k crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(k.(*ecdsa.PrivateKey))
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), err
}

// writer writes files below a directory and remembers the first error.
type writer struct {
	dir string
	err error
}

func (w *writer) put(name string, data []byte, err error) string {
	path := filepath.Join(w.dir, name)
	if w.err == nil {
		w.err = err
	}
	if w.err == nil {
		w.err = os.WriteFile(path, data, 0o600)
	}
	return path
}

func (w *writer) pair(name string, a *authority, subject pkix.Name, ips []net.IP, dns []string) (string, string) {
	cert, key, err := a.issue(subject, ips, dns)
	return w.put(name+".crt", cert, err), w.put(name+".key", key, err)
}

// kubeconfig writes a self-contained kubeconfig for a client certificate.
func (w *writer) kubeconfig(name, server string, a *authority, subject pkix.Name) string {
	cert, key, err := a.issue(subject, nil, nil)
	auth := &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}
	return w.config(name, server, a, auth, err)
}

func (w *writer) config(name, server string, a *authority, auth *clientcmdapi.AuthInfo, err error) string {
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters["test"] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: a.pem}
	cfg.AuthInfos["user"] = auth
	cfg.Contexts["test"] = &clientcmdapi.Context{Cluster: "test", AuthInfo: "user"}
	cfg.CurrentContext = "test"
	out, writeErr := clientcmd.Write(*cfg)
	if err == nil {
		err = writeErr
	}
	return w.put(name+".kubeconfig", out, err)
}

// writeFiles makes all keys, certificates and kubeconfigs.
func writeFiles(c config) (files, error) {
	var f files
	w := &writer{dir: c.dir}
	ca, err := newAuthority("nodelet-test-ca")
	if err != nil {
		return f, err
	}
	front, err := newAuthority("nodelet-test-front-proxy-ca")
	if err != nil {
		return f, err
	}
	caKey, err := pemKey(ca.key)
	f.ca, f.caKey = w.put("ca.crt", ca.pem, nil), w.put("ca.key", caKey, err)
	first, err := firstServiceIP(c.serviceCIDR)
	if err != nil {
		return f, err
	}
	ips := []net.IP{c.bind, net.IPv4(127, 0, 0, 1), net.IPv6loopback, first}
	dns := []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}
	f.apiCert, f.apiKey = w.pair("apiserver", ca, pkix.Name{CommonName: "kube-apiserver"}, ips, dns)
	f.frontCA = w.put("front-proxy-ca.crt", front.pem, nil)
	f.frontCert, f.frontKey = w.pair("front-proxy-client", front, pkix.Name{CommonName: "front-proxy-client"}, nil, nil)
	kubeletCert, _ := w.pair("apiserver-kubelet-client", ca, pkix.Name{CommonName: "kube-apiserver-kubelet-client", Organization: []string{"system:masters"}}, nil, nil)
	f.kubeletPair = strings.TrimSuffix(kubeletCert, ".crt")
	f.saKey, f.saPub = w.serviceAccountKeys()

	server := fmt.Sprintf("https://%s", net.JoinHostPort(c.bind.String(), fmt.Sprint(c.securePort)))
	f.admin = w.kubeconfig("admin", server, ca, pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}})
	w.kubeconfig("kube-proxy", server, ca, pkix.Name{CommonName: "system:kube-proxy"})
	for _, node := range c.nodes {
		w.kubeconfig("node-"+node, server, ca, pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}})
	}
	secret := make([]byte, 11)
	if _, err := rand.Read(secret); err != nil {
		return f, err
	}
	text := hex.EncodeToString(secret)
	f.bootstrapToken = text[:6] + "." + text[6:]
	w.config("bootstrap", server, ca, &clientcmdapi.AuthInfo{Token: f.bootstrapToken}, nil)
	return f, w.err
}

func (w *writer) serviceAccountKeys() (private, public string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.err = err
		return "", ""
	}
	priv, err := pemKey(key)
	private = w.put("sa.key", priv, err)
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	public = w.put("sa.pub", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), err)
	return private, public
}

// firstServiceIP is the address that the API server takes for the Service "kubernetes".
func firstServiceIP(cidrs string) (net.IP, error) {
	_, cidr, err := net.ParseCIDR(strings.Split(cidrs, ",")[0])
	if err != nil {
		return nil, fmt.Errorf("--service-cidr: %w", err)
	}
	ip := append(net.IP(nil), cidr.IP...)
	ip[len(ip)-1]++
	return ip, nil
}
