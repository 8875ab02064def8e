//! Why the kernel's tables could not be read.

use std::io;

/// Why sockets could not be listed.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// No netlink socket for sock_diag: the kernel lacks it, or a sandbox denies it.
    #[error("cannot open a netlink socket for sock_diag")]
    Open(#[source] io::Error),
    /// Sending the query or receiving the answer failed.
    #[error("cannot talk to sock_diag")]
    Exchange(#[source] io::Error),
    /// The kernel refused: `ENOENT` means that it has no sock_diag for that protocol (module `udp_diag`, `tcp_diag`).
    #[error("the kernel refused to list its sockets")]
    Refused(#[source] io::Error),
    /// The answer has lengths that cannot be.
    #[error("the kernel's list of sockets cannot be read")]
    Malformed,
    /// The table changed under every one of several dumps.
    #[error("the kernel's list of sockets changed whenever it was read")]
    Unsettled,
}

/// An error with its causes on one line, for logs.
pub(crate) struct Chain<'a>(pub(crate) &'a ScanError);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = std::error::Error::source(self.0);
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}
