//! Server reflection under both of its names, for `grpcurl` and clients without our `.proto` files.

use tonic::service::Routes;
use tonic_reflection::server::Builder;

use super::message::DESCRIPTORS;

/// The service, to be cloned for each call.
pub(super) fn routes() -> Routes {
    let builder = || Builder::configure().register_encoded_file_descriptor_set(DESCRIPTORS);
    let v1 = builder().build_v1().expect("the descriptors are generated");
    // Its first name, which older clients ask for alone.
    let v1alpha = builder().build_v1alpha().expect("as above");
    Routes::new(v1).add_service(v1alpha)
}
