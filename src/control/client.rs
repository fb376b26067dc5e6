//! The other end of the control socket: one request, one reply.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::protocol::{REPLY_BYTES_MAX, Reply, Request};

/// How long the node may take for a reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a request got no reply.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers at the socket.
    #[error(
        "no voxring answers at {}\n\
         start one with: voxring serve --data {}\n\
         or name another data folder with --data, or its configuration with --config",
        .socket.display(), data_of(.socket)
    )]
    NotRunning {
        /// The socket that was tried.
        socket: PathBuf,
    },
    /// The socket is another user's.
    #[error(
        "{}: permission denied; only the user that runs voxring (and root) may control it",
        .socket.display()
    )]
    Denied {
        /// The socket that was tried.
        socket: PathBuf,
    },
    /// The connection broke, or the node took too long.
    #[error("{}: {error}", .socket.display())]
    Io {
        /// The socket that was tried.
        socket: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// What came back is no reply: node and command are of different versions.
    #[error("{}: unreadable reply ({error}); does the running node have another version?", .socket.display())]
    Reply {
        /// The socket that was tried.
        socket: PathBuf,
        /// What is wrong with it.
        error: serde_json::Error,
    },
}

fn data_of(socket: &Path) -> String {
    socket.parent().unwrap_or(Path::new(".")).display().to_string()
}

/// Asks the node at `socket` and waits for its reply, audio included.
///
/// # Errors
/// Nobody there, no permission, a broken connection, a reply that is none. A node's refusal is a
/// reply, not an error here.
pub fn request(socket: &Path, request: &Request) -> Result<Reply, ClientError> {
    let failed = |error: io::Error| ClientError::Io { socket: socket.into(), error };
    let mut stream = UnixStream::connect(socket).map_err(|error| {
        let kind = error.kind();
        if matches!(
            kind,
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory
        ) {
            ClientError::NotRunning { socket: socket.into() }
        } else if kind == io::ErrorKind::PermissionDenied {
            ClientError::Denied { socket: socket.into() }
        } else {
            failed(error)
        }
    })?;
    stream.set_read_timeout(Some(REPLY_TIMEOUT)).map_err(failed)?;
    stream.set_write_timeout(Some(REPLY_TIMEOUT)).map_err(failed)?;
    let mut line = serde_json::to_vec(request).expect("requests are plain data");
    line.push(b'\n');
    stream.write_all(&line).map_err(failed)?;

    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    reader.by_ref().take(REPLY_BYTES_MAX as u64).read_until(b'\n', &mut line).map_err(failed)?;
    if line.is_empty() {
        return Err(failed(io::Error::new(io::ErrorKind::UnexpectedEof, "the node closed without a reply")));
    }
    let mut reply =
        serde_json::from_slice(&line).map_err(|error| ClientError::Reply { socket: socket.into(), error })?;
    if let Reply::Audio { bytes, audio, .. } = &mut reply {
        let mut wav = Vec::new();
        reader.take(*bytes).read_to_end(&mut wav).map_err(failed)?;
        if wav.len() as u64 != *bytes {
            return Err(failed(io::Error::new(io::ErrorKind::UnexpectedEof, "the audio broke off")));
        }
        *audio = wav.into();
    }
    Ok(reply)
}
