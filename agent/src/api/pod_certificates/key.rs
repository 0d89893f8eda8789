//! Keys of pod certificates, and the proof that we have them: an empty PKCS#10 request, signed with the key.

use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, SignatureAlgorithm};

use crate::objects::KeyType;

/// A new key.
pub(super) struct Made {
    /// PKCS#8.
    pub(super) key: Arc<[u8]>,
    /// PKCS#10, DER.
    pub(super) request: Vec<u8>,
}

/// Head of an Ed25519 key of the first version of PKCS#8 (RFC 8410, section 7); 32 bytes follow.
const ED25519_HEAD: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
const ED25519_SEED: usize = 32;

/// Makes a key. The request is empty, as kubelet's: signers refuse others.
pub(super) fn make(key_type: KeyType) -> Result<Made, rcgen::Error> {
    let algorithm: &'static SignatureAlgorithm = match key_type {
        KeyType::EcdsaP256 => &rcgen::PKCS_ECDSA_P256_SHA256,
        KeyType::EcdsaP384 => &rcgen::PKCS_ECDSA_P384_SHA384,
        KeyType::Ed25519 => &rcgen::PKCS_ED25519,
    };
    let pair = KeyPair::generate_for(algorithm)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&pair)?.der().to_vec();
    let key = match key_type {
        KeyType::EcdsaP256 | KeyType::EcdsaP384 => pair.serialized_der().into(),
        KeyType::Ed25519 => first_version(pair.serialized_der()).ok_or(rcgen::Error::CouldNotParseKeyPair)?.into(),
    };
    Ok(Made { key, request })
}

/// ring writes the second version of PKCS#8, with the public key, which OpenSSL before 3 does not read.
fn first_version(der: &[u8]) -> Option<Vec<u8>> {
    let start = ED25519_HEAD.len();
    // Up to the seed both differ in lengths and the version only.
    let same = |range: std::ops::Range<usize>| der.get(range.clone()) == ED25519_HEAD.get(range);
    let seed = der.get(start..start + ED25519_SEED).filter(|_| same(5..start))?;
    Some([&ED25519_HEAD, seed].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::certification_request::X509CertificationRequest;
    use x509_parser::prelude::FromDer;

    #[test]
    fn a_request_is_empty_and_about_the_key() {
        for key_type in [KeyType::EcdsaP256, KeyType::EcdsaP384, KeyType::Ed25519] {
            let made = make(key_type).unwrap();
            let (rest, request) = X509CertificationRequest::from_der(&made.request).unwrap();
            let info = request.certification_request_info;
            assert!(rest.is_empty() && info.subject.iter().next().is_none() && info.attributes().is_empty());
            // What was made is read again, and is the key of the request.
            let pair = KeyPair::try_from(&*made.key).unwrap();
            assert_eq!(info.subject_pki.subject_public_key.data.as_ref(), pair.public_key_raw(), "{key_type:?}");
            assert_ne!(make(key_type).unwrap().key, made.key);
        }
    }

    #[test]
    fn ed25519_keys_are_of_the_first_version() {
        let made = make(KeyType::Ed25519).unwrap();
        assert_eq!((made.key.len(), &made.key[..16]), (48, &ED25519_HEAD[..]));
        assert_eq!(first_version(b"something else entirely"), None);
    }
}
