//! The command line, described once: what clap parses is what `--help` teaches.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use super::call_router;
use super::cert::CertCommand;
use super::explain::ExplainCall;
use super::firewall::FirewallArgs;
use super::protocol::{CallRouterSettings, Request, SOCKET_NAME};
use crate::base::config::{
    AddressFamily, Addresses, Config, ConfigError, IoBackend, PortRange, Source, StartupMode, Value,
};
use crate::base::id::MessageId;

/// Answers calls, takes voice mail, measures itself.
///
/// Without a command it serves: loopback listeners, everything stored under ./voxring-data, demo
/// mailboxes 1001 and 1002.
#[derive(Debug, Parser)]
#[command(name = "voxring", version, after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    /// What to do; without one: serve.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Which node it is about.
    #[command(flatten)]
    pub place: Place,
}

const EXAMPLES: &str = "\
Examples:
  voxring                                     serve on loopback, data in ./voxring-data
  voxring check --config voxring.toml         what is wrong with this file and this machine?
  voxring serve --config voxring.toml         serve with it
  voxring status                              is it well? (from a second terminal)
  voxring explain-call invite.txt             would this call come in, and if not, why?
  voxring mailbox add 1003 --name \"Jo Doe\"    create a mailbox, print its PIN
  voxring message list --mailbox 1003         what did callers leave?
  voxring message export ID message.wav       listen to one

Client commands find the node by its data folder: ./voxring-data, or --data, or node.data in
--config. Exit status: 0 done, 1 failed, 2 wrong usage.";

/// Which configuration and data folder a command is about.
#[derive(Debug, Clone, Default, Args)]
pub struct Place {
    /// Configuration file (config/voxring.toml documents every key). Default: built in
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Data folder of the node, in place of node.data in the configuration
    #[arg(long, global = true, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Media backend, in place of worker.io_backend in the configuration; an option of `serve`.
    #[arg(skip)]
    pub io_backend: Option<IoBackend>,
}

/// `voxring serve`.
#[derive(Debug, Clone, Default, Args)]
pub struct Serve {
    /// How media talks to the kernel, in place of worker.io_backend: auto, uring, epoll or steered
    #[arg(long, value_name = "BACKEND", value_parser = choice::<IoBackend>)]
    pub io_backend: Option<IoBackend>,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the node until SIGTERM or Ctrl-C
    #[command(after_help = "\
Prints a start-up table of roles, ports and RTP slices, then \"ready\"; under systemd it also notifies
READY. The first start with demo mailboxes prints their PINs, once.

Example:
  voxring serve --config config/voxring.dev.toml --data /tmp/voxring")]
    Serve(Serve),
    /// Validate the configuration and the machine; each problem comes with its fix
    #[command(after_help = "\
Looks at: unknown keys and values out of range, port conflicts, the RTP range against the kernel's
ephemeral and reserved ports, descriptor and locked-memory limits, socket buffers, io_uring (by
creating a ring), listeners that can be bound now, a data folder that can be written.
Exit status 1 when there is an error; warnings alone give 0.

Example:
  voxring check --config voxring.toml --json")]
    Check(Output),
    /// How the running node is: listeners, workers, shards, totals
    #[command(after_help = "\
Examples:
  voxring status --config voxring.toml
  voxring status --data /var/lib/voxring --json")]
    Status(Output),
    /// The calls of the running node, oldest first
    #[command(after_help = "\
Examples:
  voxring calls --data /var/lib/voxring
  voxring calls --json                        with the counters of each call's media")]
    Calls(Output),
    /// Would this call come in? Takes it through admission without placing it
    #[command(
        override_usage = "voxring explain-call [OPTIONS] <FILE>\n       \
                          voxring explain-call [OPTIONS] --from <URI> --to <URI> --peer <IP[:PORT]>",
        after_help = "\
The steps are the node's own: source, certificate, hunt_group, dial_plan, security, purpose, with the
configuration of --config; DNS names of gateways are looked up now. When the node runs, the mailbox is
looked up too. Limits are not looked at. Exit status: 0 the call would come in, 1 it would not.

Examples:
  voxring explain-call invite.txt --config voxring.toml
  voxring explain-call --config voxring.toml --from sip:2000@pbx --to sip:5000@vm --peer 192.0.2.7
  voxring explain-call --config voxring.toml --from sip:2000@pbx --to sip:5000@vm --peer 192.0.2.7 \\
      --transport tls --peer-name pbx.example.com --diversion 'tel:1001' --srtp --json"
    )]
    ExplainCall(Box<ExplainCall>),
    /// Mailboxes of the running node
    #[command(subcommand)]
    Mailbox(MailboxCommand),
    /// Messages in the mailboxes of the running node
    #[command(subcommand)]
    Message(MessageCommand),
    /// Read configuration and TLS files anew, as SIGHUP does
    #[command(after_help = "\
Prints the keys that are in force now and those that need a restart. When anything is wrong, every
problem is named with file, line and key, nothing changes, and the exit status is 1.

Example:
  voxring reload --data /var/lib/voxring")]
    Reload(Output),
    /// Put a new worker in the place of the one that takes calls
    #[command(after_help = "\
The other slot's worker starts and calls itself before it takes calls; the old one keeps its calls,
for worker.drain_timeout_s at most. When the new one fails, the old one goes on and the exit status
is 1. After \"gave up\" in the log or in status this starts the worker again.

Example:
  voxring recycle --data /var/lib/voxring")]
    Recycle(Output),
    /// Replace the running program, workers and supervisor, without ending a call
    #[command(after_help = "\
The file is looked at first, then a worker of it must start and call itself; when it cannot, nothing
changes and the exit status is 1. Then new calls go to it, the old worker keeps its calls, and the
supervisor's process runs the new program under its old process id. Without --binary that is the file
the node was started from, so: replace it, then upgrade.

Examples:
  install -m 755 target/release/voxring /usr/local/bin/ && voxring upgrade --data /var/lib/voxring
  voxring upgrade --binary ./voxring-new")]
    Upgrade {
        /// The new program
        #[arg(long, value_name = "FILE")]
        binary: Option<PathBuf>,
        /// How to print.
        #[command(flatten)]
        output: Output,
    },
    /// Refuse new calls while running ones finish, or take them again
    #[command(after_help = "\
While on, OPTIONS and new calls get 503 with Retry-After at router, service and workers, so that
dispatchers turn to another node. It does not outlast the node.

Examples:
  voxring drain on
  voxring drain off")]
    Drain {
        /// on or off
        switch: Switch,
        /// How to print.
        #[command(flatten)]
        output: Output,
    },
    /// Settings of the call router, which change while it runs
    #[command(subcommand)]
    CallRouter(CallRouterCommand),
    /// Print an nftables ruleset for the configuration, or compare it with the running one
    #[command(after_help = "\
Nothing is ever applied. Gateways reach SIP and media, --allow-tcp stays open to everybody, all else
that comes in is dropped. Names of gateways are looked up now. With --json the ruleset is for nft -j.

Examples:
  voxring firewall --config voxring.toml > voxring.nft
  nft -c -f voxring.nft                       is it right?
  nft -f voxring.nft                          load it; loading again replaces it
  voxring firewall --config voxring.toml --check")]
    Firewall(FirewallArgs),
    /// Print the kernel settings the configuration needs, as a drop-in for /etc/sysctl.d
    #[command(after_help = "\
Example:
  voxring sysctl --config voxring.toml > /etc/sysctl.d/90-voxring.conf && sysctl --system")]
    Sysctl(Output),
    /// Certificates for development and tests: make, revoke, look at
    #[command(subcommand)]
    Cert(CertCommand),
    /// Print the number of the form in which a supervisor hands over to this program
    #[command(hide = true)]
    HandoverForm,
    /// Run a worker process (started by the supervisor only)
    #[command(hide = true)]
    Worker {
        /// Which of the two slots.
        #[arg(long)]
        slot: Slot,
    },
}

/// What can be done with mailboxes.
#[derive(Debug, Subcommand)]
pub enum MailboxCommand {
    /// Create a mailbox; without --pin a PIN is drawn and printed once
    #[command(after_help = "\
Example:
  voxring mailbox add 1003 --name \"Jo Doe\"")]
    Add {
        /// Its number: what callers dial
        number: String,
        /// Its owner's name; default: the number
        #[arg(long)]
        name: Option<String>,
        /// Its PIN, digits. Other users of the machine can see it while this runs; prefer the drawn one
        #[arg(long)]
        pin: Option<String>,
        /// How to print.
        #[command(flatten)]
        output: Output,
    },
    /// All mailboxes with their counts
    #[command(after_help = "\
Example:
  voxring mailbox list")]
    List(Output),
    /// One mailbox
    #[command(after_help = "\
Example:
  voxring mailbox show 1003")]
    Show {
        /// Its number
        number: String,
        /// How to print.
        #[command(flatten)]
        output: Output,
    },
    /// Give a mailbox a greeting of its own, or go back to the built-in one
    #[command(
        override_usage = "voxring mailbox greeting [OPTIONS] <NUMBER> <FILE.wav>\n       \
                          voxring mailbox greeting [OPTIONS] <NUMBER> --remove",
        after_help = "\
The next caller hears it, then the beep. The node reads the file itself and keeps a copy: its user
must be able to read it, and a node under systemd sees neither /home nor your /tmp.

Examples:
  sox in.mp3 -r 8000 -c 1 -b 16 jo.wav        the format that is needed
  voxring mailbox greeting 1003 jo.wav
  voxring mailbox greeting 1003 --remove"
    )]
    Greeting {
        /// The mailbox's number
        number: String,
        /// What callers hear: a WAV file, 16-bit PCM, 8000 Hz, mono, at most 5 minutes
        #[arg(value_name = "FILE.wav", required_unless_present = "remove", conflicts_with = "remove")]
        file: Option<PathBuf>,
        /// Back to the built-in greeting
        #[arg(long)]
        remove: bool,
        /// How to print.
        #[command(flatten)]
        output: Output,
    },
}

/// What can be done with messages.
#[derive(Debug, Subcommand)]
pub enum MessageCommand {
    /// A mailbox's messages, oldest first
    #[command(after_help = "\
Example:
  voxring message list --mailbox 1003")]
    List {
        /// The mailbox's number
        #[arg(long, value_name = "NUMBER")]
        mailbox: String,
        /// How to print.
        #[command(flatten)]
        output: Output,
    },
    /// Write a message's audio to a WAV file: 16-bit PCM, 8000 Hz, mono
    #[command(after_help = "\
Example:
  voxring message export 01a203ad9dd2efb87f2125ccb20e message.wav")]
    Export {
        /// The message, as `message list` shows it
        #[arg(value_parser = MessageId::parse)]
        id: MessageId,
        /// The file to write
        file: PathBuf,
        /// Replace the file if it exists
        #[arg(long)]
        force: bool,
        /// How to print.
        #[command(flatten)]
        output: Output,
    },
    /// Delete a message and its audio, for good
    #[command(after_help = "\
Example:
  voxring message delete 01a203ad9dd2efb87f2125ccb20e")]
    Delete {
        /// The message, as `message list` shows it
        #[arg(value_parser = MessageId::parse)]
        id: MessageId,
        /// How to print.
        #[command(flatten)]
        output: Output,
    },
}

/// What can be done with the call router.
#[derive(Debug, Subcommand)]
pub enum CallRouterCommand {
    /// Its settings in force, each with where it comes from, and its sockets
    #[command(after_help = "\
Example:
  voxring call-router get --json")]
    Get(Output),
    /// Change settings while it runs; they stay over a restart
    #[command(after_help = "\
New sockets open before old ones close, and connections that are up stay. A value that cannot work is
refused and nothing changes. What is set is kept in call-router.toml in the data folder and lies over
[router] in the configuration file, until --reset.

Examples:
  voxring call-router set --port 5070
  voxring call-router set --address 192.0.2.5,2001:db8::5 --udp on
  voxring call-router set --maintenance on
  voxring call-router set --reset")]
    Set {
        /// What changes.
        #[command(flatten)]
        settings: CallRouterArguments,
        /// How to print.
        #[command(flatten)]
        output: Output,
    },
}

/// `voxring call-router set`.
#[derive(Debug, Clone, Args)]
#[group(id = "settings", required = true, multiple = true)]
pub struct CallRouterArguments {
    /// Port for TCP and UDP
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Port for TLS
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    tls_port: Option<u16>,
    /// Listen on UDP too
    #[arg(long)]
    udp: Option<Switch>,
    /// Transports beside UDP: dual, tcp or tls
    #[arg(long, value_name = "MODE", value_parser = choice::<StartupMode>)]
    startup_mode: Option<StartupMode>,
    /// Internet protocols: any, ipv4 or ipv6
    #[arg(long, value_name = "FAMILY", value_parser = choice::<AddressFamily>)]
    address_family: Option<AddressFamily>,
    /// Address to listen on, or several with commas between
    #[arg(long, value_name = "ADDRESS,...", value_delimiter = ',')]
    address: Vec<IpAddr>,
    /// Refuse new calls and OPTIONS with 503
    #[arg(long)]
    maintenance: Option<Switch>,
    /// Drop everything that was set at run time; other settings given here then apply
    #[arg(long)]
    reset: bool,
}

impl CallRouterArguments {
    /// The request for it.
    pub fn request(self) -> Request {
        let settings = CallRouterSettings {
            address: Addresses::new(self.address),
            address_family: self.address_family,
            startup_mode: self.startup_mode,
            port: self.port,
            tls_port: self.tls_port,
            udp: self.udp.map(Switch::is_on),
            maintenance: self.maintenance.map(Switch::is_on),
        };
        Request::CallRouterSet { settings, reset: self.reset }
    }
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

impl Switch {
    /// Whether it is.
    pub fn is_on(self) -> bool {
        self == Self::On
    }
}

/// Reads one of a key's named values.
fn choice<T: Value>(text: &str) -> Result<T, String> {
    let known = T::choices().iter().any(|choice| choice.name == text);
    let read = serde_json::from_value(serde_json::Value::String(text.to_owned())).ok();
    read.filter(|_| known).ok_or_else(|| format!("not {}", T::takes()))
}

/// How to print.
#[derive(Debug, Clone, Copy, Args)]
pub struct Output {
    /// Print JSON, for programs
    #[arg(long)]
    pub json: bool,
}

/// One of a node's two worker slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "upper")]
pub enum Slot {
    /// Port `worker.port_a`, the lower half of the RTP range.
    A,
    /// Port `worker.port_b`, the upper half.
    B,
}

impl Slot {
    /// Both of them.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    /// Its place among [`Self::BOTH`].
    pub fn index(self) -> usize {
        usize::from(self == Self::B)
    }

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        if self == Self::A { Self::B } else { Self::A }
    }

    /// Its letter.
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::B => "B",
        }
    }

    /// The slot's half of the RTP range; `None` when the range holds fewer than two pairs.
    pub fn rtp_ports(self, config: &Config) -> Option<PortRange> {
        config.rtp.ports.slice(if self == Self::A { 0 } else { 1 }, 2)
    }
}

impl Place {
    /// The configuration: the file, else the embedded default; `--data` wins over `node.data`,
    /// `--io-backend` over `worker.io_backend`; what was set at run time lies over `[router]`.
    ///
    /// # Errors
    /// Those of [`Config::load`] and [`call_router::apply`].
    pub fn load(&self) -> Result<(Config, Source), ConfigError> {
        let (mut config, mut source) = self.load_file()?;
        call_router::apply(&mut config, &mut source)?;
        Ok((config, source))
    }

    /// The same without what was set at run time.
    ///
    /// # Errors
    /// Those of [`Config::load`].
    pub fn load_file(&self) -> Result<(Config, Source), ConfigError> {
        let (mut config, source) = match &self.config {
            Some(file) => Config::load_with_source(file)?,
            None => (Config::embedded(), Source::default()),
        };
        if let Some(data) = &self.data {
            config.node.data.clone_from(data);
        }
        if let Some(backend) = self.io_backend {
            config.worker.io_backend = backend;
        }
        Ok((config, source))
    }

    /// Where the running node's control socket is.
    ///
    /// # Errors
    /// Those of [`Config::load`], when only the file can tell.
    pub fn socket(&self) -> Result<PathBuf, ConfigError> {
        match &self.data {
            Some(data) => Ok(data.join(SOCKET_NAME)),
            None => Ok(self.load_file()?.0.node.data.join(SOCKET_NAME)),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    /// Goal: the description holds together. Method: clap's own check.
    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Goal: no arguments serve; options may stand before or after the command. Method: parse both.
    #[test]
    fn no_command_serves_and_options_stand_anywhere() {
        assert!(parse("voxring").unwrap().command.is_none());
        for line in ["voxring --data d status --json", "voxring status --json --data d"] {
            let cli = parse(line).unwrap();
            assert!(matches!(cli.command, Some(Command::Status(Output { json: true }))), "{line}");
            assert_eq!(cli.place.socket().unwrap(), PathBuf::from("d/control.sock"));
        }
    }

    /// Goal: `--io-backend` of `serve` wins over the configuration, and takes only what it takes.
    /// Method: parse, load the built-in configuration.
    #[test]
    fn the_media_backend_can_be_chosen_at_the_command_line() {
        let cli = parse("voxring serve --io-backend epoll").unwrap();
        let Some(Command::Serve(Serve { io_backend })) = cli.command else { panic!("it serves") };
        let place = Place { io_backend, ..cli.place };
        assert_eq!(place.load_file().unwrap().0.worker.io_backend, IoBackend::Epoll);
        let error = parse("voxring serve --io-backend kqueue").unwrap_err().to_string();
        assert!(error.contains(r#"not "auto" or "uring" or "epoll""#), "{error}");
    }

    /// Goal: an id that is none never reaches the node, and the error says what one looks like.
    /// Method: parse such a command.
    #[test]
    fn a_message_id_is_checked_before_anything_is_asked() {
        let error = parse("voxring message delete ../1").unwrap_err().to_string();
        assert!(error.contains("28 lower-case hex digits"), "{error}");
    }

    /// Goal: a greeting is a file or --remove, never both or neither. Method: parse all four.
    #[test]
    fn a_greeting_is_either_a_file_or_removed() {
        for (rest, is_right) in
            [("", false), (" a.wav", true), (" --remove", true), (" a.wav --remove", false)]
        {
            assert_eq!(parse(&format!("voxring mailbox greeting 1001{rest}")).is_ok(), is_right, "{rest}");
        }
    }

    fn set(rest: &str) -> Result<Request, clap::Error> {
        match parse(&format!("voxring call-router set{rest}"))?.command {
            Some(Command::CallRouter(CallRouterCommand::Set { settings, .. })) => Ok(settings.request()),
            other => panic!("{other:?}"),
        }
    }

    /// Goal: settings of the call router arrive as they were typed. Method: all of them, and --reset.
    #[test]
    fn call_router_settings_are_what_was_typed() {
        let all = " --port 5070 --tls-port 5071 --udp on --startup-mode tcp --address-family ipv4 \
                   --address 192.0.2.5,192.0.2.6 --maintenance off";
        let settings = CallRouterSettings {
            address: Some(serde_json::from_str(r#"["192.0.2.5","192.0.2.6"]"#).unwrap()),
            address_family: Some(AddressFamily::Ipv4),
            startup_mode: Some(StartupMode::Tcp),
            port: Some(5070),
            tls_port: Some(5071),
            udp: Some(true),
            maintenance: Some(false),
        };
        assert_eq!(set(all).unwrap(), Request::CallRouterSet { settings, reset: false });
        let reset = Request::CallRouterSet { settings: CallRouterSettings::default(), reset: true };
        assert_eq!(set(" --reset").unwrap(), reset);
    }

    /// Goal: nothing to set, and values that no setting takes, never reach the node; the message says
    /// what is taken. Method: one slip a line.
    #[test]
    fn wrong_call_router_settings_are_refused_with_what_is_right() {
        for (rest, told) in [
            ("", "--port"),
            (" --json", "--port"),
            (" --port 0", "1..=65535"),
            (" --port 65536", "1..=65535"),
            (" --udp yes", "on, off"),
            (" --startup-mode both", "\"dual\" or \"tcp\" or \"tls\""),
            (" --address-family ip", "\"any\" or \"ipv4\" or \"ipv6\""),
            (" --address localhost", "invalid IP address"),
        ] {
            let error = set(rest).unwrap_err().to_string();
            assert!(error.contains(told), "{rest}: {error}");
        }
    }

    /// Goal: every command that prints has --json. Method: ask clap, serve and worker apart.
    #[test]
    fn every_printing_command_has_json() {
        fn leaves(command: &clap::Command, found: &mut Vec<(String, bool)>) {
            if command.get_subcommands().next().is_none() {
                let json = command.get_arguments().any(|argument| argument.get_id() == "json");
                found.push((command.get_name().to_owned(), json));
            }
            command.get_subcommands().for_each(|command| leaves(command, found));
        }
        let mut found = Vec::new();
        leaves(&Cli::command(), &mut found);
        assert_eq!(found.len(), 25, "{found:?}");
        for (name, json) in found {
            assert_eq!(json, !matches!(name.as_str(), "serve" | "worker" | "handover-form"), "{name}");
        }
    }

    /// Goal: without a file the node has its demo mailboxes. Method: load nothing.
    #[test]
    fn without_a_file_the_embedded_default_is_used() {
        let place = Place { data: Some("d".into()), ..Place::default() };
        let (config, source) = place.load().unwrap();
        assert!(config.node.demo_mailboxes);
        assert_eq!(config.node.data, PathBuf::from("d"));
        assert_eq!(source.file, None);
    }
}
