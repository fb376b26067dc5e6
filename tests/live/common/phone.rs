//! A real phone: Debian's baresip 1.0.0, which plays a WAV in place of a microphone.
//!
//! What it does, seen on the wire: it follows a 302 by itself (`sip_autoredirect` came later) and
//! keeps TLS where the Contact says `transport=tls`; it shows `sip_certificate` as a TLS client,
//! speaks TLS 1.2 and 1.3 without resumption, believes any server, and does not know `sips:`. Its own
//! TLS listener takes the port above `sip_listen`. With `mediaenc=srtp-mand` it offers RTP/SAVP with
//! one line of AES_CM_128_HMAC_SHA1_80. When its certificate is refused after its own half of the
//! handshake it reports nothing: its call waits for an answer.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::node::Node;
use crate::common::peers::Running;
use crate::common::{audio, now, wait_for};

/// Greeting (0.5 s) and beep (0.4 s): the phone is silent meanwhile.
const LEAD_SAMPLES: usize = 7200;

/// The number of a phone that answers calls.
pub(crate) const NUMBER: &str = "4711";

/// What is special about a phone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Special {
    /// Key and certificate, PEM.
    pub(crate) certificate: Option<PathBuf>,
    /// Media goes over SRTP, or not at all.
    pub(crate) srtp: bool,
    /// It is [`NUMBER`], and answers whoever calls.
    pub(crate) answers: bool,
}

/// A running phone. Ends with its owner.
pub(crate) struct Phone {
    _running: Running,
    control: Control,
    folder: PathBuf,
}

impl Phone {
    /// Starts a phone that belongs to a node, in a folder of its own there.
    pub(crate) fn start(node: &Node, special: &Special) -> Self {
        let folder = node.file("phone");
        configure(node, &folder, special);
        let log = File::create(folder.join("log")).expect("the disk has room");
        let child = Command::new("baresip")
            .args(["-4", "-f"])
            .arg(&folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .expect("baresip starts");
        let running = Running::new(child);
        let control = Control::connect(node.ports.peer_control());
        Self { _running: running, control, folder }
    }

    /// Begins a call.
    pub(crate) fn dial(&mut self, uri: &str) {
        self.control.command("dial", uri);
    }

    /// Reads on until an event was reported; gives the moment it was.
    pub(crate) fn wait_for(&mut self, event: &str) -> Instant {
        self.control.wait_for(event)
    }

    /// Calls, waits for the answer, plays the ten seconds of speech, and hangs up.
    pub(crate) fn speak(&mut self, uri: &str) {
        self.dial(uri);
        let established = self.wait_for("CALL_ESTABLISHED");
        // At the end of a file baresip goes on with silence for a while before it notices.
        let spoken = Duration::from_millis(900 + 10_000 + 10);
        std::thread::sleep(spoken.saturating_sub(established.elapsed()));
        self.control.command("hangup", "");
    }

    /// True when it reported an event by now.
    pub(crate) fn has_reported(&mut self, event: &str) -> bool {
        self.control.has_heard(event)
    }

    /// What it heard: the samples it has written so far.
    pub(crate) fn heard(&self) -> Vec<i16> {
        let mut files = std::fs::read_dir(&self.folder).expect("its folder").flatten();
        let file = files.find(|file| file.file_name().to_string_lossy().ends_with("-dec.wav"));
        let file = file.unwrap_or_else(|| panic!("baresip dumps what it hears: {}", self.log()));
        // It completes the header when it likes; behind it are the samples.
        let bytes = std::fs::read(file.path()).expect("it can be read");
        let samples = bytes.get(44..).unwrap_or_default();
        samples.chunks_exact(2).map(|sample| i16::from_le_bytes([sample[0], sample[1]])).collect()
    }

    /// What it wrote.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

/// Writes the phone's configuration folder.
fn configure(node: &Node, folder: &Path, special: &Special) {
    std::fs::create_dir_all(folder).expect("the disk has room");
    let mut wav = vec![0; LEAD_SAMPLES];
    wav.extend(audio::speech());
    audio::write(&folder.join("speech.wav"), &wav);
    let media = node.ports.peer_media();
    let mut config = format!(
        "poll_method epoll\nsip_listen 127.0.0.1:{}\naudio_source aufile,{}\naudio_player aubridge,heard\n\
         ausrc_srate 8000\nauplay_srate 8000\nausrc_channels 1\nauplay_channels 1\nausrc_format s16\n\
         auplay_format s16\nauenc_format s16\naudec_format s16\nrtp_ports {media}-{}\naudio_buffer 20-160\n\
         jitter_buffer_delay 1-5\nnet_interface 127.0.0.1\nmodule_path /usr/lib/baresip/modules\n\
         module g711.so\nmodule aufile.so\nmodule aubridge.so\n\
         module sndfile.so\nsnd_path {}\nmodule srtp.so\nmodule_tmp account.so\nmodule_app menu.so\n\
         module_app ctrl_tcp.so\nctrl_tcp_listen 127.0.0.1:{}\n",
        node.ports.peer(),
        folder.join("speech.wav").display(),
        media + 99,
        folder.display(),
        node.ports.peer_control(),
    );
    if let Some(certificate) = &special.certificate {
        config.push_str(&format!("sip_certificate {}\n", certificate.display()));
    }
    std::fs::write(folder.join("config"), config).expect("the disk has room");
    // No registration; PCMU, so that the source is known to the sample.
    let srtp = if special.srtp { ";mediaenc=srtp-mand" } else { "" };
    let (user, answers) = if special.answers { (NUMBER, ";answermode=auto") } else { ("bob", "") };
    let account = format!("<sip:{user}@127.0.0.1>;regint=0;audio_codecs=PCMU{srtp}{answers}\n");
    std::fs::write(folder.join("accounts"), account).expect("the disk has room");
    std::fs::write(folder.join("contacts"), "").expect("the disk has room");
}

/// The phone's control connection: JSON in netstrings (baresip's `ctrl_tcp`).
struct Control {
    stream: TcpStream,
    heard: String,
}

impl Control {
    fn connect(port: u16) -> Self {
        let stream = wait_for("baresip's control connection", Duration::from_secs(10), || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()
        });
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket option");
        Self { stream, heard: String::new() }
    }

    fn command(&mut self, command: &str, parameters: &str) {
        let text = format!(r#"{{"command":"{command}","params":"{parameters}","token":"t"}}"#);
        write!(self.stream, "{}:{text},", text.len()).expect("baresip listens");
    }

    fn wait_for(&mut self, event: &str) -> Instant {
        let mut buffer = [0; 4096];
        while !self.heard.contains(event) {
            let count = self.stream.read(&mut buffer).unwrap_or(0);
            assert!(count > 0, "no {event}: {}", self.heard);
            self.heard.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        now()
    }

    fn has_heard(&mut self, event: &str) -> bool {
        self.stream.set_nonblocking(true).expect("a socket option");
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = self.stream.read(&mut buffer) {
            self.heard.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        self.stream.set_nonblocking(false).expect("a socket option");
        self.heard.contains(event)
    }
}
