//! Names that the broker makes up: queues, consumer tags, reply addresses.
//!
//! Owns their form, which is RabbitMQ's: a prefix and 22 characters of URL-safe base64 that nobody
//! can guess. Unguessable matters: a reply address is all that it takes to send a reply.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// `prefix` and 22 random characters (132 bits).
pub(crate) fn name(prefix: &str) -> String {
    let mut random = [0u8; 22];
    getrandom::fill(&mut random).expect("the operating system has random bytes");
    let characters = random.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 63)]));
    prefix.chars().chain(characters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_rabbitmqs_form_and_do_not_repeat() {
        let name = name("amq.gen-");
        assert_eq!(name.len(), "amq.gen-".len() + 22);
        assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)));
        assert_ne!(name, super::name("amq.gen-"));
    }
}
