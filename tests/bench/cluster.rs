//! What the API server must have before a benchmark writes to it.

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{Api, PostParams};

/// Makes the namespace and its `default` service account, which admission of pods wants.
pub(crate) async fn ensure_namespace(client: &Client, name: &str) -> anyhow::Result<()> {
    let metadata = |name: &str| ObjectMeta { name: Some(name.to_owned()), ..Default::default() };
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = Namespace { metadata: metadata(name), ..Default::default() };
    unless_present(namespaces.create(&PostParams::default(), &namespace).await)?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), name);
    let account = ServiceAccount { metadata: metadata("default"), ..Default::default() };
    unless_present(accounts.create(&PostParams::default(), &account).await)
}

fn unless_present<T>(made: kube::Result<T>) -> anyhow::Result<()> {
    match made {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error.into()),
    }
}
