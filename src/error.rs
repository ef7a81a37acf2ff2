//! The errors that AMQP clients see, and the reply codes they carry.
//!
//! Owns the table of reply codes of AMQP 0-9-1 (specification section 1.2, plus the codes that
//! RabbitMQ uses) and [`AmqpError`], which is turned into `channel.close` or `connection.close`
//! in exactly one place (`connection::closing`). It must not know about sockets or logs.

use std::fmt;

/// A reply code of AMQP 0-9-1, with RabbitMQ's name and scope for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum ReplyCode {
    /// 311: a message is larger than the server takes.
    ContentTooLarge = 311,
    /// 312: a mandatory message reached no queue (only in `basic.return`).
    NoRoute = 312,
    /// 320: the server closes the connection on an operator's behalf.
    ConnectionForced = 320,
    /// 403: credentials or permissions do not suffice.
    AccessRefused = 403,
    /// 404: the named entity does not exist.
    NotFound = 404,
    /// 405: the entity belongs to another connection.
    ResourceLocked = 405,
    /// 406: a precondition of the method does not hold.
    PreconditionFailed = 406,
    /// 501: a frame could not be decoded.
    FrameError = 501,
    /// 502: a frame's fields are illegal.
    SyntaxError = 502,
    /// 503: a method that the server does not know or serve.
    CommandInvalid = 503,
    /// 504: a method on a channel or connection in the wrong state.
    ChannelError = 504,
    /// 505: a frame of another type than the one that is due.
    UnexpectedFrame = 505,
    /// 506: a limit of the server is reached.
    ResourceError = 506,
    /// 530: the method is not allowed.
    NotAllowed = 530,
    /// 540: the feature is not implemented.
    NotImplemented = 540,
    /// 541: the server failed.
    InternalError = 541,
}

impl ReplyCode {
    /// The name that begins every reply text, as RabbitMQ spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ContentTooLarge => "CONTENT_TOO_LARGE",
            Self::NoRoute => "NO_ROUTE",
            Self::ConnectionForced => "CONNECTION_FORCED",
            Self::AccessRefused => "ACCESS_REFUSED",
            Self::NotFound => "NOT_FOUND",
            Self::ResourceLocked => "RESOURCE_LOCKED",
            Self::PreconditionFailed => "PRECONDITION_FAILED",
            Self::FrameError => "FRAME_ERROR",
            Self::SyntaxError => "SYNTAX_ERROR",
            Self::CommandInvalid => "COMMAND_INVALID",
            Self::ChannelError => "CHANNEL_ERROR",
            Self::UnexpectedFrame => "UNEXPECTED_FRAME",
            Self::ResourceError => "RESOURCE_ERROR",
            Self::NotAllowed => "NOT_ALLOWED",
            Self::NotImplemented => "NOT_IMPLEMENTED",
            Self::InternalError => "INTERNAL_ERROR",
        }
    }

    /// Whether the error closes the whole connection (a "hard" error) or only its channel.
    pub fn is_hard(self) -> bool {
        !matches!(
            self,
            Self::ContentTooLarge
                | Self::NoRoute
                | Self::AccessRefused
                | Self::NotFound
                | Self::ResourceLocked
                | Self::PreconditionFailed
        )
    }

    /// The number on the wire.
    pub fn code(self) -> u16 {
        self as u16
    }
}

/// An error that closes a channel or a connection, with what the client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AmqpError {
    /// The reply code, which also decides what is closed.
    pub code: ReplyCode,
    /// The explanation after `NAME - `.
    pub text: String,
    /// The class of the failing method, 0 when unknown.
    pub class_id: u16,
    /// The failing method, 0 when unknown.
    pub method_id: u16,
}

impl AmqpError {
    /// An error without a failing method; [`AmqpError::of`] adds one.
    pub fn new(code: ReplyCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), class_id: 0, method_id: 0 }
    }

    /// Names the failing method, unless one is named already.
    pub fn of(mut self, class_id: u16, method_id: u16) -> Self {
        if self.class_id == 0 {
            self.class_id = class_id;
            self.method_id = method_id;
        }
        self
    }

    /// The reply text on the wire: `NAME - explanation`, cut to the 255 bytes of a short string
    /// at a character boundary, as RabbitMQ does.
    pub fn reply_text(&self) -> String {
        let mut text = self.to_string();
        if text.len() > 255 {
            let end = (0..=255).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
            text.truncate(end);
        }
        text
    }
}

impl fmt::Display for AmqpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.text.is_empty() {
            return f.write_str(self.code.name());
        }
        write!(f, "{} - {}", self.code.name(), self.text)
    }
}

impl std::error::Error for AmqpError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reply_text_is_cut_at_a_character_boundary() {
        let error = AmqpError::new(ReplyCode::NotFound, "\u{e9}".repeat(200));
        let text = error.reply_text();
        assert!(text.len() <= 255 && text.len() >= 254);
        assert!(text.starts_with("NOT_FOUND - \u{e9}"));
    }

    #[test]
    fn soft_errors_close_channels_only() {
        assert!(!ReplyCode::NotFound.is_hard());
        assert!(!ReplyCode::ResourceLocked.is_hard());
        assert!(ReplyCode::NotAllowed.is_hard());
        assert!(ReplyCode::NotImplemented.is_hard());
    }
}
