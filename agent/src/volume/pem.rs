//! PEM text (RFC 7468), as projected volumes show it. Pure.

use pem::{EncodeConfig, LineEnding, Pem};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// Label of a certificate.
pub(super) const CERTIFICATE: &str = "CERTIFICATE";
/// Label of a key in PKCS#8.
pub(super) const PRIVATE_KEY: &str = "PRIVATE KEY";

/// The certificates of a text, without what is between them.
pub(super) fn certificates(text: &str) -> Result<Vec<Vec<u8>>, String> {
    let found = CertificateDer::pem_slice_iter(text.as_bytes());
    found.map(|der| der.map(|der| der.to_vec()).map_err(|e| format!("not PEM text: {e}"))).collect()
}

/// One block.
pub(super) fn encode(label: &str, der: &[u8]) -> String {
    pem::encode_config(&Pem::new(label, der), EncodeConfig::new().set_line_ending(LineEnding::LF))
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn text_says_what_went_into_it_in_lines_of_64(
            ders in proptest::collection::vec(proptest::collection::vec(0u8.., 1..200), 0..6),
        ) {
            let all: String = ders.iter().map(|der| format!("spoken\n{}", encode(CERTIFICATE, der))).collect();
            proptest::prop_assert!(all.lines().all(|line| line.len() <= 64 && !line.is_empty()));
            proptest::prop_assert_eq!(certificates(&all), Ok(ders));
        }
    }
}
