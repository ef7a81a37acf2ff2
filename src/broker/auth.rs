//! Who may log in.
//!
//! Owns the check of a user name and password, and of where the user connects from. It must not
//! know SASL's encodings, nor tell a client why it was refused: that is for the log.

use crate::config::Auth;

/// Why a login was refused, in RabbitMQ's words for its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LoginRefused {
    InvalidCredentials { user: String },
    LoopbackOnly { user: String },
    BlankPassword { user: String },
}

impl std::fmt::Display for LoginRefused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::InvalidCredentials { user } => write!(f, "user '{user}' - invalid credentials"),
            Self::LoopbackOnly { user } => {
                write!(f, "user '{user}' can only connect via localhost")
            }
            Self::BlankPassword { user } => {
                write!(f, "user '{user}' attempted to log in with a blank password")
            }
        }
    }
}

/// Checks a login against the default user. `is_local` tells whether it comes over the loopback
/// interface, which is all that `guest` may use unless the configuration says otherwise.
pub(crate) fn check_login(
    auth: &Auth,
    user: &str,
    password: &str,
    is_local: bool,
) -> Result<(), LoginRefused> {
    let user_name = || user.to_owned();
    if password.is_empty() {
        return Err(LoginRefused::BlankPassword { user: user_name() });
    }
    let known = is_same(user.as_bytes(), auth.default_user.as_bytes());
    if !(is_same(password.as_bytes(), auth.default_password.as_bytes()) && known) {
        return Err(LoginRefused::InvalidCredentials { user: user_name() });
    }
    if !is_local && auth.loopback_users.iter().any(|name| name == user) {
        return Err(LoginRefused::LoopbackOnly { user: user_name() });
    }
    Ok(())
}

/// Compares without telling by the time it takes how far the two agree.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(differences) == 0 && a.len() == b.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_comes_from_this_machine_only() {
        let auth = Auth::default();
        assert_eq!(check_login(&auth, "guest", "guest", true), Ok(()));
        let refused = check_login(&auth, "guest", "guest", false).expect_err("remote guest");
        assert_eq!(refused.to_string(), "user 'guest' can only connect via localhost");
    }

    #[test]
    fn wrong_and_blank_passwords_are_refused() {
        let auth = Auth { default_password: String::new(), ..Auth::default() };
        assert!(check_login(&Auth::default(), "guest", "guess", true).is_err());
        assert!(check_login(&Auth::default(), "guest", "gues", true).is_err());
        assert!(check_login(&Auth::default(), "gues", "guest", true).is_err());
        assert!(check_login(&auth, "guest", "", true).is_err());
    }
}
