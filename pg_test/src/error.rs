//! Errors: what the server said, and what the harness has to say itself.

use std::fmt;
use std::io::ErrorKind;

/// An error as the server reported it. Connection failures use SQLSTATE `08006`.
#[derive(Clone, PartialEq, Eq)]
pub struct SqlError {
    /// Five characters, for example `23505`.
    pub sqlstate: String,
    /// The primary message.
    pub message: String,
    /// `ERROR`, `FATAL` or `PANIC`.
    pub severity: Box<str>,
    /// DETAIL, when there is one.
    pub detail: Option<Box<str>>,
    /// HINT, when there is one.
    pub hint: Option<Box<str>>,
    /// CONTEXT, when there is one.
    pub context: Option<Box<str>>,
}

impl SqlError {
    /// An error of the connection rather than of a statement.
    pub fn connection(message: &str) -> SqlError {
        SqlError {
            sqlstate: "08006".into(),
            message: message.trim_end().to_string(),
            severity: "FATAL".into(),
            detail: None,
            hint: None,
            context: None,
        }
    }

    /// True when the connection is gone rather than the statement wrong.
    pub fn is_connection_loss(&self) -> bool {
        self.sqlstate.starts_with("08") || self.sqlstate.starts_with("57P")
    }
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.severity, self.sqlstate, self.message)?;
        let more = [("detail", &self.detail), ("hint", &self.hint), ("context", &self.context)];
        for (label, text) in more {
            if let Some(text) = text {
                write!(f, "\n{label}: {text}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for SqlError {}

/// Anything that can go wrong in the harness.
pub enum Error {
    /// The server refused a statement.
    Sql(Box<SqlError>),
    /// One sentence, and what to do about it.
    Harness {
        /// What happened.
        what: String,
        /// What to do, possibly empty.
        hint: String,
    },
}

impl Error {
    /// An error with a hint.
    pub fn new(what: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::Harness { what: what.into(), hint: hint.into() }
    }

    /// The server's error, if it is one.
    pub fn sql(&self) -> Option<&SqlError> {
        match self {
            Error::Sql(error) => Some(error),
            Error::Harness { .. } => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Sql(error) => fmt::Display::fmt(error, f),
            Error::Harness { what, hint } if hint.is_empty() => write!(f, "{what}"),
            Error::Harness { what, hint } => write!(f, "{what}\nhint: {hint}"),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}

impl From<SqlError> for Error {
    fn from(error: SqlError) -> Error {
        Error::Sql(Box::new(error))
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        let hint = match error.kind() {
            ErrorKind::StorageFull => "Free some space, or run make clean-run.",
            ErrorKind::PermissionDenied => {
                "Did another user run this before? That user can run make clean-run."
            }
            ErrorKind::NotFound => "Something was removed meanwhile; run this again.",
            _ => "",
        };
        Error::new(format!("A file operation failed: {error}."), hint)
    }
}

impl From<String> for Error {
    fn from(what: String) -> Error {
        Error::new(what, "")
    }
}

impl From<&str> for Error {
    fn from(what: &str) -> Error {
        Error::new(what, "")
    }
}

/// The harness's result.
pub type Result<T> = std::result::Result<T, Error>;
