//! Wire descriptions of the gRPC APIs that nodelet speaks, and the clients and servers generated from them.
//!
//! The `.proto` files are written for this project; `tests/descriptors.rs` compares them with the published ones.

mod redact;

/// The Container Runtime Interface, `runtime.v1`: what a kubelet says to a container runtime.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

/// The gRPC health checking protocol, `grpc.health.v1`: what a gRPC probe says to a container.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}
