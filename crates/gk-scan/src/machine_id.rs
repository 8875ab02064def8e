//! An id of the machine that does not give away its machine id.
//!
//! `/etc/machine-id` is confidential by its own manual page (machine-id(5)): programs shall derive an id of their own
//! from it. This is what `sd_id128_get_machine_app_specific` and `systemd-id128 machine-id --app-specific` do:
//! HMAC-SHA256 keyed with the machine id over the application's id, cut to 16 bytes and marked as a random UUID.
//! Images bake machine ids in and containers may lack one: it is a hint, never a proof.

use std::fs;

use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Gatekeeper's id in this scheme. Changing it makes every machine look new.
const APPLICATION: Uuid = Uuid::from_u128(0x6761_7465_6b65_4570_a5d1_9c0e_2b7f_4e18);

/// The block size of SHA-256, to which HMAC fills up its key.
const BLOCK_BYTES: usize = 64;

/// Gatekeeper's id of this machine.
pub(crate) fn machine() -> Option<Uuid> {
    let text = fs::read_to_string("/etc/machine-id").ok()?;
    Some(app_specific(parse(&text)?, APPLICATION))
}

/// 32 hexadecimal digits and a newline. An image that is still to be set up has `uninitialized` or nothing.
fn parse(text: &str) -> Option<Uuid> {
    let id = text.trim();
    (id.len() == 32).then(|| Uuid::try_parse(id).ok()).flatten().filter(|id| !id.is_nil())
}

fn app_specific(machine: Uuid, application: Uuid) -> Uuid {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hmac_sha256(*machine.as_bytes(), application.as_bytes())[..16]);
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}

/// RFC 2104, for keys shorter than a block.
fn hmac_sha256(key: [u8; 16], message: &[u8]) -> [u8; 32] {
    let padded = |pad: u8| {
        let mut block = [pad; BLOCK_BYTES];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        Sha256::new().chain_update(block)
    };
    let inner = padded(0x36).chain_update(message).finalize();
    padded(0x5c).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hmac_is_the_one_of_openssl() {
        let digest = hmac_sha256([0x0b; 16], b"Hi There");
        // openssl dgst -sha256 -mac HMAC -macopt hexkey:0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b
        assert_eq!(hex(&digest), "492ce020fe2534a5789dc3848806c78f4f6711397f08e7e7a12ca5a4483c8aa6");
    }

    #[test]
    fn the_id_is_the_one_systemd_derives() {
        // systemd-id128 machine-id --app-specific=676174656b654570a5d19c0e2b7f4e18, on a machine with this id
        let machine = parse("3d1219c7c4c5404aaa1f6d2a48adfda4\n").unwrap();
        assert_eq!(
            app_specific(machine, APPLICATION).simple().to_string(),
            "7e981d9e2f8a4e1d9aed1c17a8884328"
        );
    }

    #[test]
    fn what_is_no_machine_id_gives_none() {
        for bad in [
            "",
            "uninitialized\n",
            "00000000000000000000000000000000",
            "3d1219c7-c4c5-404a-aa1f-6d2a48adfda4",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
