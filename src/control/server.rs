//! The node's end of the control socket.
//!
//! It reads a request, hands it to the supervisor with a place for the reply, and writes the reply.
//! It knows nothing of calls or mailboxes.

use std::fs::Permissions;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::protocol::{ErrorKind, REQUEST_BYTES_MAX, Reply, Request, SOCKET_NAME};

/// A request and where its reply goes. A dropped sender tells the client the node is stopping.
pub type Ask = (Request, oneshot::Sender<Reply>);

/// Clients served at once; the next ones wait.
const CLIENTS_MAX: usize = 32;
/// A client that neither asks nor reads for this long is dropped.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest path of a Unix socket, in bytes (`sun_path` is 108 with its final zero).
const PATH_BYTES_MAX: usize = 107;

/// The bound socket. Its file goes away with it.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Binds `control.sock` in the data folder, readable and writable by this user alone. Must be
    /// called inside a tokio runtime.
    ///
    /// A socket file nobody answers at is a crashed node's and is replaced.
    ///
    /// # Errors
    /// `AddrInUse` when another node answers there; a path too long for a socket; what the file
    /// system says.
    pub fn bind(data: &Path) -> io::Result<Self> {
        let path = data.join(SOCKET_NAME);
        let length = path.as_os_str().len();
        // The socket is bound under a name of its own, which is one letter longer.
        if length >= PATH_BYTES_MAX {
            let message = format!(
                "{}: {length} bytes is too long for a Unix socket ({} at most): choose a shorter data folder",
                path.display(),
                PATH_BYTES_MAX - 1
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        if std::os::unix::net::UnixStream::connect(&path).is_ok() {
            let message = format!("{}: a voxring already runs on this data folder", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
        }
        // Bind aside, restrict, then move into place: nobody can connect before the permissions hold.
        let aside = data.join(format!("{SOCKET_NAME}+"));
        match std::fs::remove_file(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = StdUnixListener::bind(&aside)?;
        std::fs::set_permissions(&aside, Permissions::from_mode(0o600))?;
        std::fs::rename(&aside, &path)?;
        Self::over(listener, path)
    }

    /// The socket of the program that ran in this process before. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// It is no socket that listens.
    pub fn resume(data: &Path, socket: OwnedFd) -> io::Result<Self> {
        Self::over(socket.into(), data.join(SOCKET_NAME))
    }

    fn over(listener: StdUnixListener, path: PathBuf) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener: UnixListener::from_std(listener)?, path })
    }

    /// The socket once more, for the next program.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn kept(&self) -> io::Result<OwnedFd> {
        self.listener.as_fd().try_clone_to_owned()
    }

    /// Serves until the receiver of `asks` is dropped.
    pub async fn run(self, asks: mpsc::Sender<Ask>) {
        let clients = std::sync::Arc::new(Semaphore::new(CLIENTS_MAX));
        loop {
            let permit = clients.clone().acquire_owned().await.expect("the semaphore is never closed");
            let stream = tokio::select! {
                () = asks.closed() => return,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Out of descriptors, say: wait a little instead of spinning.
                        tracing::warn!(%error, "control socket: cannot accept");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let asks = asks.clone();
            tokio::spawn(async move {
                let served = tokio::time::timeout(CLIENT_TIMEOUT, serve(stream, asks)).await;
                match served {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "control socket: client lost"),
                    Err(_) => tracing::warn!("control socket: client too slow, dropped"),
                }
                drop(permit);
            });
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Another node may have taken the name over meanwhile only if nobody answered here, so the
        // file is ours.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// One client: a request, a reply, and the audio when there is some.
async fn serve(mut stream: UnixStream, asks: mpsc::Sender<Ask>) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut line = Vec::new();
    BufReader::new(read).take(REQUEST_BYTES_MAX as u64).read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Ok(()); // A node that starts looked whether somebody answers.
    }
    let reply = if line.last() == Some(&b'\n') || line.len() < REQUEST_BYTES_MAX {
        match serde_json::from_slice(&line) {
            Ok(request) => ask(request, &asks).await,
            Err(error) => Reply::error(ErrorKind::BadRequest, format!("unreadable request: {error}")),
        }
    } else {
        Reply::error(ErrorKind::BadRequest, format!("request longer than {REQUEST_BYTES_MAX} bytes"))
    };
    let mut bytes = serde_json::to_vec(&reply).map_err(io::Error::other)?;
    bytes.push(b'\n');
    write.write_all(&bytes).await?;
    if let Reply::Audio { audio, .. } = &reply {
        write.write_all(audio).await?;
    }
    write.shutdown().await
}

/// Asks the supervisor.
async fn ask(request: Request, asks: &mpsc::Sender<Ask>) -> Reply {
    let (sender, receiver) = oneshot::channel();
    if asks.send((request, sender)).await.is_ok()
        && let Ok(reply) = receiver.await
    {
        return reply;
    }
    Reply::error(ErrorKind::Unavailable, "the node is stopping")
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::base::id::MessageId;
    use crate::control::client::{self, ClientError};
    use crate::control::protocol::MailboxInfo;
    use crate::mailbox::{Message, MessageKind};

    /// Answers each ask with `answer`, on a thread of its own, while `body` talks to the socket.
    fn with_server(answer: fn(Request) -> Reply, body: impl FnOnce(&Path)) {
        let data = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let server = {
            let _guard = runtime.enter();
            Server::bind(data.path()).unwrap()
        };
        let (sender, mut receiver) = mpsc::channel::<Ask>(4);
        let (stop, mut stopped) = oneshot::channel::<()>();
        let node = std::thread::spawn(move || {
            runtime.spawn(server.run(sender));
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = &mut stopped => return,
                        asked = receiver.recv() => {
                            let (request, reply) = asked.unwrap();
                            let _ = reply.send(answer(request));
                        }
                    }
                }
            });
        });
        body(data.path());
        drop(stop);
        node.join().unwrap();
    }

    fn mailbox_1001(request: Request) -> Reply {
        assert_eq!(request, Request::MailboxShow { number: "1001".into() });
        Reply::Mailbox(MailboxInfo {
            number: "1001".into(),
            name: "Ann".into(),
            unread: 1,
            messages: 2,
            missed: 0,
            greeting: false,
        })
    }

    /// Goal: what the supervisor answers is what the client gets. Method: a round trip over a socket.
    #[test]
    fn a_request_is_answered_by_the_supervisor() {
        with_server(mailbox_1001, |data| {
            let request = Request::MailboxShow { number: "1001".into() };
            let reply = client::request(&data.join(SOCKET_NAME), &request).unwrap();
            assert_eq!(reply, mailbox_1001(request));
        });
    }

    /// Goal: audio follows its reply whole, whatever bytes it holds. Method: newlines and zeros in it.
    #[test]
    fn audio_follows_its_reply_byte_for_byte() {
        fn audio(request: Request) -> Reply {
            let Request::MessageExport { id } = request else { panic!("{request:?}") };
            let audio: Vec<u8> = (0..100_000u32).map(|n| [b'\n', 0, b'}', 0xFF][n as usize % 4]).collect();
            let message = Message {
                id,
                mailbox: "1001".into(),
                kind: MessageKind::Voice,
                caller: String::new(),
                caller_name: String::new(),
                called: "1001".into(),
                diversion_reason: String::new(),
                call_id: "a".into(),
                started_ms: 1,
                duration_ms: 2,
                read: false,
            };
            Reply::Audio { message, bytes: audio.len() as u64, audio: audio.into() }
        }
        with_server(audio, |data| {
            let request = Request::MessageExport { id: MessageId::new(std::time::UNIX_EPOCH, 7) };
            let reply = client::request(&data.join(SOCKET_NAME), &request).unwrap();
            assert_eq!(reply, audio(request));
        });
    }

    /// Goal: nonsense and overlong lines are refused and the next client is served. Method: send both,
    /// then a good request.
    #[test]
    fn unreadable_requests_are_refused_and_the_next_one_is_served() {
        with_server(mailbox_1001, |data| {
            let socket = data.join(SOCKET_NAME);
            for bytes in [b"nonsense\n".to_vec(), vec![b'x'; REQUEST_BYTES_MAX]] {
                let mut stream = UnixStream::connect(&socket).unwrap();
                stream.write_all(&bytes).unwrap();
                let mut reply = String::new();
                stream.read_to_string(&mut reply).unwrap();
                assert!(reply.contains(r#""kind":"bad_request""#), "{reply}");
            }
            assert!(client::request(&socket, &Request::MailboxShow { number: "1001".into() }).is_ok());
        });
    }

    /// Goal: only the owner may control the node, a second node is refused, a dead one's socket is
    /// replaced. Method: permissions of the file; bind twice; leave a socket file behind.
    #[test]
    fn the_socket_is_private_exclusive_and_survives_a_crash() {
        with_server(mailbox_1001, |data| {
            let mode = std::fs::metadata(data.join(SOCKET_NAME)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            assert_eq!(Server::bind(data).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        });
        let data = tempfile::tempdir().unwrap();
        drop(std::os::unix::net::UnixListener::bind(data.path().join(SOCKET_NAME)).unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _guard = runtime.enter();
        assert!(Server::bind(data.path()).is_ok());
    }

    /// Goal: without a node the client says which socket it tried and how to start one. Method: an
    /// empty folder.
    #[test]
    fn without_a_node_the_error_names_socket_and_command() {
        let data = tempfile::tempdir().unwrap();
        let error = client::request(&data.path().join(SOCKET_NAME), &Request::Status).unwrap_err();
        assert!(matches!(error, ClientError::NotRunning { .. }));
        let text = error.to_string();
        assert!(text.contains("control.sock") && text.contains("voxring serve --data"), "{text}");
    }
}
