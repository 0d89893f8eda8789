package main

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// admin asks and prepares the cluster with the admin's kubeconfig.
type admin struct{ kubernetes.Interface }

func adminClient(f files) (admin, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", f.admin)
	if err != nil {
		return admin{}, err
	}
	client, err := kubernetes.NewForConfig(cfg)
	return admin{client}, err
}

// apiReady holds when every check of /readyz does, which includes the hook that writes the bootstrap RBAC.
func (a admin) apiReady(ctx context.Context) error {
	body, err := a.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
	if err != nil {
		return fmt.Errorf("/readyz: %w: %s", err, strings.TrimSpace(string(body)))
	}
	return nil
}

// clusterReady holds when a pod can be created: its namespace has the default ServiceAccount and the CA bundle.
func (a admin) clusterReady(ctx context.Context) error {
	if _, err := a.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{}); err != nil {
		return err
	}
	_, err := a.CoreV1().ConfigMaps("default").Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
	return err
}

// ensureBootstrap does what kubeadm does for joining nodes: a bootstrap token whose group may ask for a client
// certificate, approved by the controller, and renewals by the nodes themselves.
func (a admin) ensureBootstrap(ctx context.Context, token string) error {
	id, secret, _ := strings.Cut(token, ".")
	_, err := a.CoreV1().Secrets(metav1.NamespaceSystem).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "bootstrap-token-" + id},
		Type:       corev1.SecretTypeBootstrapToken,
		StringData: map[string]string{
			"token-id":                       id,
			"token-secret":                   secret,
			"usage-bootstrap-authentication": "true",
			"auth-extra-groups":              "system:bootstrappers:nodes",
		},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("bootstrap token: %w", err)
	}
	for role, group := range map[string]string{
		"system:node-bootstrapper": "system:bootstrappers:nodes",
		"system:certificates.k8s.io:certificatesigningrequests:nodeclient":     "system:bootstrappers:nodes",
		"system:certificates.k8s.io:certificatesigningrequests:selfnodeclient": "system:nodes",
	} {
		_, err := a.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "nodelet-test:" + role},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "Group", Name: group}},
		}, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("binding of %s: %w", role, err)
		}
	}
	return nil
}
