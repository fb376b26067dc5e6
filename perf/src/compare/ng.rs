//! rtpengine's NG control protocol: a cookie, a blank and a bencoded dictionary over UDP.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::bencode::Value;
use crate::media::g711::Codec;
use crate::sip::sdes::Crypto;
use crate::sip::sdp::{self, Direction};

/// How long an answer may take before the command is sent again, and how often it is sent.
const PATIENCE: Duration = Duration::from_millis(1000);
const ATTEMPTS: u32 = 3;

/// The largest answer; queries of one call are a few KiB.
const ANSWER_BYTES: usize = 65_536;

/// A client of one rtpengine.
#[derive(Debug)]
pub struct Ng {
    socket: UdpSocket,
    sent: u64,
    buffer: Vec<u8>,
}

impl Ng {
    /// A client that will speak to the control port at `server`.
    ///
    /// # Errors
    /// No socket.
    pub fn new(server: SocketAddr) -> Result<Self> {
        let any: IpAddr = if server.is_ipv4() { [127, 0, 0, 1].into() } else { IpAddr::from([0u8; 16]) };
        let socket = UdpSocket::bind((any, 0)).context("no socket for the NG protocol")?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket, sent: 0, buffer: vec![0; ANSWER_BYTES] })
    }

    /// Asks whether it is there.
    ///
    /// # Errors
    /// No answer, or not `pong`.
    pub fn ping(&mut self) -> Result<()> {
        let answer = self.command("ping", [])?;
        ensure!(result(&answer) == "pong", "rtpengine answers ping with {:?}", result(&answer));
        Ok(())
    }

    /// Opens a call that its caller's media reaches from `caller`; gives where the callee's goes.
    ///
    /// # Errors
    /// No answer, or a refusal with its reason.
    pub fn offer(&mut self, call: &str, caller: SocketAddr) -> Result<SocketAddr> {
        let call_id = [("call-id", Value::text(call)), ("from-tag", Value::text("caller"))];
        self.describe("offer", caller, call_id)
    }

    /// Answers it for a callee whose media comes from `callee`; gives where the caller's goes.
    ///
    /// # Errors
    /// No answer, or a refusal with its reason.
    pub fn answer(&mut self, call: &str, callee: SocketAddr) -> Result<SocketAddr> {
        let tags = [
            ("call-id", Value::text(call)),
            ("from-tag", Value::text("caller")),
            ("to-tag", Value::text("callee")),
        ];
        self.describe("answer", callee, tags)
    }

    /// Ends a call at once.
    ///
    /// # Errors
    /// No answer, or a refusal with its reason.
    pub fn delete(&mut self, call: &str) -> Result<()> {
        let entries = [
            ("call-id", Value::text(call)),
            ("from-tag", Value::text("caller")),
            ("delete delay", Value::Integer(0)),
        ];
        let answer = self.command("delete", entries)?;
        accepted("delete", &answer)
    }

    /// What is known of a call: its streams, their packets and errors.
    ///
    /// # Errors
    /// No answer, or a refusal with its reason.
    pub fn query(&mut self, call: &str) -> Result<Value> {
        let answer = self.command("query", [("call-id", Value::text(call))])?;
        accepted("query", &answer)?;
        Ok(answer)
    }

    /// Sends a description of plain RTP at `media` and reads the one that comes back.
    fn describe<const N: usize>(
        &mut self,
        command: &str,
        media: SocketAddr,
        names: [(&str, Value); N],
    ) -> Result<SocketAddr> {
        let local = sdp::Local {
            address: media.ip(),
            port: media.port(),
            codecs: vec![Codec::Pcmu],
            dtmf: false,
            direction: Direction::SendRecv,
            version: 1,
            null_address: false,
            crypto: Crypto::default(),
        };
        let how = [
            ("sdp", Value::text(&local.render())),
            ("replace", Value::texts(&["origin", "session-connection"])),
            ("ICE", Value::text("remove")),
            ("rtcp-mux", Value::texts(&["demux"])),
            ("transport-protocol", Value::text("RTP/AVP")),
        ];
        let answer = self.command(command, names.into_iter().chain(how))?;
        accepted(command, &answer)?;
        let body = answer.get("sdp").and_then(Value::as_text);
        let body = body.with_context(|| format!("no sdp in rtpengine's answer to {command}"))?;
        sdp::read(body.as_bytes())?.rtp.with_context(|| format!("no media in rtpengine's {command}"))
    }

    /// Sends a command until its answer comes. A repeated cookie is answered from memory, not done twice.
    fn command<'a>(
        &mut self,
        name: &str,
        entries: impl IntoIterator<Item = (&'a str, Value)>,
    ) -> Result<Value> {
        self.sent += 1;
        let cookie = format!("{}_{}", std::process::id(), self.sent);
        let entries = entries.into_iter().chain([("command", Value::text(name))]);
        let mut datagram = format!("{cookie} ").into_bytes();
        datagram.extend(Value::dictionary(entries).write());
        for _ in 0..ATTEMPTS {
            // A refusal here is the kernel's word on the attempt before.
            let _ = self.socket.send(&datagram);
            if let Some(answer) = self.receive(&cookie)? {
                return Ok(answer);
            }
        }
        bail!("rtpengine does not answer {name}")
    }

    /// The answer with this cookie; `None` when it does not come in time.
    fn receive(&mut self, cookie: &str) -> Result<Option<Value>> {
        loop {
            let count = match self.socket.recv(&mut self.buffer) {
                Ok(count) => count,
                // Nobody listens yet: as good as no answer.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    std::thread::sleep(PATIENCE / 10);
                    return Ok(None);
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            };
            let datagram = self.buffer.get(..count).unwrap_or_default();
            let after = datagram.strip_prefix(cookie.as_bytes()).and_then(|rest| rest.strip_prefix(b" "));
            // Another cookie is a late answer to an earlier attempt.
            if let Some(body) = after {
                return Ok(Some(Value::read(body).context("rtpengine's answer is not bencoded")?));
            }
        }
    }
}

fn result(answer: &Value) -> &str {
    answer.get("result").and_then(Value::as_text).unwrap_or_default()
}

fn accepted(command: &str, answer: &Value) -> Result<()> {
    let reason = answer.get("error-reason").and_then(Value::as_text).unwrap_or("no reason given");
    ensure!(result(answer) == "ok", "rtpengine refuses {command}: {reason}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A far side that answers each datagram by `answer(cookie, command)`.
    fn server(answer: impl Fn(&str, &Value) -> Vec<u8> + Send + 'static) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((count, from)) = socket.recv_from(&mut buffer) {
                let text = &buffer[..count];
                let blank = text.iter().position(|byte| *byte == b' ').unwrap();
                let cookie = std::str::from_utf8(&text[..blank]).unwrap();
                let command = Value::read(&text[blank + 1..]).unwrap();
                socket.send_to(&answer(cookie, &command), from).unwrap();
            }
        });
        address
    }

    /// Goal: commands carry what rtpengine's manual asks for, and its description is read.
    /// Method: a far side that checks an offer and names a port.
    #[test]
    fn an_offer_says_what_the_manual_asks_for() {
        let address = server(|cookie, command| {
            assert_eq!(command.get("command").and_then(Value::as_text), Some("offer"));
            assert_eq!(command.get("rtcp-mux"), Some(&Value::texts(&["demux"])));
            assert_eq!(command.get("ICE").and_then(Value::as_text), Some("remove"));
            let sdp = command.get("sdp").and_then(Value::as_text).unwrap();
            assert!(sdp.contains("m=audio 4000 RTP/AVP 0"), "{sdp}");
            let sdp = "v=0\r\nc=IN IP4 127.0.0.9\r\nm=audio 30000 RTP/AVP 0\r\n";
            let answer = Value::dictionary([("result", Value::text("ok")), ("sdp", Value::text(sdp))]);
            [cookie.as_bytes(), b" ", &answer.write()].concat()
        });
        let media = Ng::new(address).unwrap().offer("call", "127.0.0.1:4000".parse().unwrap()).unwrap();
        assert_eq!(media, "127.0.0.9:30000".parse().unwrap());
    }

    /// Goal: a refusal is told with rtpengine's reason. Method: a far side that refuses.
    #[test]
    fn a_refusal_is_told_with_its_reason() {
        let address = server(|cookie, _| {
            let entries = [("result", Value::text("error")), ("error-reason", Value::text("no ports left"))];
            [cookie.as_bytes(), b" ", &Value::dictionary(entries).write()].concat()
        });
        let error = Ng::new(address).unwrap().delete("call").unwrap_err().to_string();
        assert_eq!(error, "rtpengine refuses delete: no ports left");
    }
}
