//! A real phone leaves a message: Debian's baresip, over TCP and UDP.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::node::Node;
use crate::common::peers::{self, Running};
use crate::common::{audio, now, wait_for};

/// Greeting (0.5 s) and beep (0.4 s): the phone is silent meanwhile.
const LEAD_SAMPLES: usize = 7200;

/// Writes the phone's configuration folder.
fn phone(node: &Node, folder: &Path) {
    std::fs::create_dir_all(folder).expect("the disk has room");
    let mut wav = vec![0; LEAD_SAMPLES];
    wav.extend(audio::speech());
    audio::write(&folder.join("speech.wav"), &wav);
    let media = node.ports.peer_media();
    let config = format!(
        "poll_method epoll\nsip_listen 127.0.0.1:{}\naudio_source aufile,{}\naudio_player aufile,{}\n\
         ausrc_srate 8000\nauplay_srate 8000\nausrc_channels 1\nauplay_channels 1\nausrc_format s16\n\
         auplay_format s16\nauenc_format s16\naudec_format s16\nrtp_ports {media}-{}\naudio_buffer 20-160\n\
         jitter_buffer_delay 1-5\nnet_interface 127.0.0.1\nmodule_path /usr/lib/baresip/modules\n\
         module g711.so\nmodule aufile.so\nmodule_tmp account.so\nmodule_app menu.so\n\
         module_app ctrl_tcp.so\nctrl_tcp_listen 127.0.0.1:{}\n",
        node.ports.peer(),
        folder.join("speech.wav").display(),
        folder.join("heard.wav").display(),
        media + 99,
        node.ports.peer_control(),
    );
    std::fs::write(folder.join("config"), config).expect("the disk has room");
    // No registration; PCMU, so that the source is known to the sample.
    std::fs::write(folder.join("accounts"), "<sip:bob@127.0.0.1>;regint=0;audio_codecs=PCMU\n")
        .expect("room");
    std::fs::write(folder.join("contacts"), "").expect("the disk has room");
}

/// Lets the phone call 1001, speak, and hang up when it has spoken.
fn leave_message(transport: &str) {
    if !peers::has_peer("baresip") {
        return;
    }
    let node = Node::with_short_greeting(|_| {});
    let folder = node.file("phone");
    phone(&node, &folder);
    let uri = match transport {
        "tcp" => node.uri("1001", "tcp"),
        _ => format!("sip:1001@127.0.0.1:{}", node.ports.router()),
    };
    let log = File::create(folder.join("log")).expect("the disk has room");
    let child = Command::new("baresip")
        .args(["-4", "-f"])
        .arg(&folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a descriptor"))
        .stderr(log)
        .spawn()
        .expect("baresip starts");
    let _running = Running::new(child);
    let mut control = Control::connect(node.ports.peer_control());
    control.command("dial", &uri);
    let established = control.wait_for("CALL_ESTABLISHED");
    // At the end of a file baresip goes on with silence for a while before it notices.
    let spoken = Duration::from_millis(900 + 10_000 + 10);
    std::thread::sleep(spoken.saturating_sub(established.elapsed()));
    control.command("hangup", "");
    let messages = node.wait_messages("1001", 1, Duration::from_secs(5));
    assert_eq!(messages[0].caller, "bob");
    audio::assert_same_speech(&audio::speech(), &node.export(&messages[0].id));
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

    /// Reads on until an event was reported; gives the moment it was.
    fn wait_for(&mut self, event: &str) -> Instant {
        let mut buffer = [0; 4096];
        while !self.heard.contains(event) {
            let count = self.stream.read(&mut buffer).unwrap_or(0);
            assert!(count > 0, "no {event}: {}", self.heard);
            self.heard.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        now()
    }
}

/// Goal: baresip calls over TCP, follows both redirects, and its speech is the message (acceptance 2).
/// Method: it plays a WAV, silent until the beep is over; the export is compared. baresip 1.0.0
/// follows a 302 by itself (`sip_autoredirect` came later).
#[test]
fn baresip_leaves_its_speech_over_tcp() {
    leave_message("tcp");
}

/// Goal: the same over UDP, as the laptop configuration allows.
/// Method: as above, a URI without transport.
#[test]
fn baresip_leaves_its_speech_over_udp() {
    leave_message("udp");
}
