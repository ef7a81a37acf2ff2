//! Owns the tests of users, vhosts' limits and permissions as one value. It must not need a socket.

use super::*;
use crate::error::ReplyCode;

fn access() -> Arc<Access> {
    let access = Access::new(Services::for_test());
    access.add_user("guest", Some("guest"), &[]).expect("a new user");
    Arc::new(access)
}

fn login(access: &Access, user: &str, password: &str) -> bool {
    access.check_login(user, password, true, &[]).is_ok()
}

fn permission(configure: &str, write: &str, read: &str) -> PermissionDefinition {
    let text = str::to_owned;
    PermissionDefinition {
        vhost: text("/"),
        user: text("guest"),
        configure: text(configure),
        write: text(write),
        read: text(read),
    }
}

#[test]
fn guest_comes_from_this_machine_only() {
    let access = access();
    let loopback = ["guest".to_owned()];
    assert_eq!(access.check_login("guest", "guest", true, &loopback), Ok(()));
    assert_eq!(access.check_login("guest", "guest", false, &[]), Ok(()));
    let refused = access.check_login("guest", "guest", false, &loopback).expect_err("remote guest");
    assert_eq!(refused.to_string(), "user 'guest' can only connect via localhost");
}

#[test]
fn wrong_and_blank_passwords_are_refused() {
    let access = access();
    assert!(!login(&access, "guest", "guess") && !login(&access, "guest", "gues"));
    assert!(!login(&access, "gues", "guest") && !login(&access, "guest", ""));
    assert!(access.add_user("u", Some(""), &[]).is_err());
    access.add_user("u", None, &[]).expect("a user without password");
    assert!(!login(&access, "u", "") && !login(&access, "u", "u"));
}

#[test]
fn a_remembered_login_ends_with_its_password() {
    let access = access();
    assert!(login(&access, "guest", "guest"));
    access.set_password("guest", "other").expect("the user exists");
    assert!(!login(&access, "guest", "guest") && login(&access, "guest", "other"));
    access.clear_password("guest").expect("the user exists");
    assert!(!login(&access, "guest", "other"));
    access.delete_user("guest").expect("the user exists");
    access.add_user("guest", Some("new"), &[]).expect("a new user");
    assert!(!login(&access, "guest", "other") && login(&access, "guest", "new"));
}

/// SHA-256 of `secret`, which takes no time.
fn put_quick_user(access: &Access) {
    let definition = UserDefinition {
        name: "quick".to_owned(),
        password_hash: "AQIDBDB9kM21iEUzN1lZ+6VReCsdNqS0sERdAQTcY6Xs3PMz".to_owned(),
        hashing_algorithm: String::new(),
        tags: Vec::new(),
        limits: UserLimits::default(),
    };
    access.put_user(&definition).expect("a new user");
}

#[test]
fn only_known_logins_and_blank_passwords_are_judged_at_once() {
    let access = access();
    access.add_user("none", None, &[]).expect("a user without password");
    put_quick_user(&access);
    let recall = |user: &str, password: &str| {
        let judged = access.recall_login(user, password, true, &[]);
        judged.map(|verdict| verdict.is_ok())
    };
    assert_eq!(recall("guest", "guest"), Some(true));
    assert_eq!(recall("quick", "secret"), Some(true));
    for user in ["guest", "quick", "none", "nobody"] {
        assert_eq!((recall(user, "guess"), recall(user, "")), (None, Some(false)), "{user}");
    }
    // Imported, nobody has logged in yet.
    let copy = Access::new(Services::for_test());
    access.users().iter().for_each(|user| copy.put_user(user).expect("our own"));
    let recall = || copy.recall_login("guest", "guest", true, &[]);
    assert_eq!(recall(), None);
    assert!(login(&copy, "guest", "guest"));
    assert_eq!(recall(), Some(Ok(())));
    let remote = copy.recall_login("guest", "guest", false, &["guest".to_owned()]);
    assert!(matches!(remote, Some(Err(LoginRefused::LoopbackOnly { .. }))));
}

#[test]
fn every_refusal_takes_as_long_as_a_wrong_password() {
    let access = access();
    access.add_user("none", None, &[]).expect("a user without password");
    put_quick_user(&access);
    // The best of several, because the machine may be busy.
    let mut best = HashMap::new();
    for _ in 0..5 {
        for user in ["guest", "quick", "none", "nobody"] {
            let begin = std::time::Instant::now();
            assert!(!login(&access, user, "guess"));
            let took = begin.elapsed();
            best.entry(user).and_modify(|best| took.min(*best).clone_into(best)).or_insert(took);
        }
    }
    for user in ["quick", "none", "nobody"] {
        assert!(best[user] * 4 > best["guest"], "{user}: {best:?}");
    }
}

#[test]
fn rights_follow_changes() {
    let access = access();
    let mut rights = Rights::new(&access, "guest", "/").expect("the user exists");
    assert!(!rights.has_access());
    access.set_permissions(&permission("^own", ".*", "")).expect("valid");
    assert!(rights.is_outdated() && rights.has_access() && !rights.is_outdated());
    assert!(rights.may(Right::Configure, Resource::Queue("own-1")));
    assert!(!rights.may(Right::Configure, Resource::Queue("other")));
    assert!(!rights.may(Right::Read, Resource::Queue("own-1")));
    assert!(rights.check_publish(b"x").is_ok());
    access.set_permissions(&permission("", "^amq.default$", "")).expect("valid");
    assert!(rights.check_publish(b"").is_ok());
    let refused = rights.check_publish(b"x").expect_err("no longer");
    let text = "write access to exchange 'x' in vhost '/' refused for user 'guest'";
    assert_eq!((refused.code, refused.text.as_str()), (ReplyCode::AccessRefused, text));
    access.clear_permissions("/", "guest").expect("the user exists");
    assert!(rights.check_publish(b"").is_err());
}

#[test]
fn topic_permissions_expand_names() {
    let access = access();
    let mut rights = Rights::new(&access, "guest", "/").expect("the user exists");
    assert!(rights.check_topic(Right::Write, "t", b"anything").is_ok());
    let topic = TopicPermissionDefinition {
        vhost: "/".to_owned(),
        user: "guest".to_owned(),
        exchange: "t".to_owned(),
        write: "^{username}.{vhost}$".to_owned(),
        read: "^{client_id}$".to_owned(),
    };
    access.set_topic_permissions(&topic).expect("valid");
    assert!(rights.has_topic_permissions());
    assert!(rights.check_topic(Right::Write, "t", b"guest./").is_ok());
    assert!(rights.check_topic(Right::Write, "u", b"other").is_ok());
    assert!(rights.check_topic(Right::Read, "t", b"guest./").is_err());
    let refused = rights.check_topic(Right::Write, "t", b"k").expect_err("another key");
    let text = "write access to topic 'k' in exchange 't' in vhost '/' refused for user 'guest'";
    assert_eq!(refused.text, text);
    access.clear_topic_permissions("/", "guest", Some("t")).expect("the user exists");
    assert!(rights.check_topic(Right::Write, "t", b"k").is_ok());
}

#[test]
fn listings_can_be_set_again() {
    let access = access();
    access.set_permissions(&permission("a", "b", "")).expect("valid");
    access.set_tags("guest", &["monitoring".to_owned()]).expect("the user exists");
    let limits = UserLimits { max_connections: Some(1), max_channels: None };
    access.set_user_limits("guest", limits).expect("the user exists");
    let copy = Access::new(Services::for_test());
    access.users().iter().for_each(|user| copy.put_user(user).expect("our own"));
    access.permissions().iter().for_each(|one| copy.set_permissions(one).expect("our own"));
    assert_eq!((copy.users(), copy.permissions()), (access.users(), access.permissions()));
    assert!(login(&copy, "guest", "guest"));
}
