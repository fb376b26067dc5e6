//! Call-router settings that were changed at run time: the file that keeps them, laid over the
//! configuration file's `[router]`.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::protocol::{CallRouterSetting, CallRouterSettings};
use crate::base::config::{Config, ConfigError, ConfigProblem, Origin, Source};

/// Name of the file in the data folder.
pub const FILE_NAME: &str = "call-router.toml";
/// The file's first lines.
const HEADER: &str = "# Kept by voxring: set with `voxring call-router set`, dropped with --reset.\n\
                      # It lies over [router] in the configuration file.\n\n";

/// The whole file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    router: CallRouterSettings,
}

impl CallRouterSettings {
    /// Nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// These over `under`.
    #[must_use]
    pub fn over(self, under: Self) -> Self {
        Self {
            address: self.address.or(under.address),
            address_family: self.address_family.or(under.address_family),
            startup_mode: self.startup_mode.or(under.startup_mode),
            port: self.port.or(under.port),
            tls_port: self.tls_port.or(under.tls_port),
            udp: self.udp.or(under.udp),
            maintenance: self.maintenance.or(under.maintenance),
        }
    }

    /// What is wrong with one value alone, as (`router.key`, message).
    pub fn problems(&self) -> Vec<(String, String)> {
        let ports = [("router.port", self.port), ("router.tls_port", self.tls_port)];
        let noughts = ports.into_iter().filter(|(_, port)| *port == Some(0));
        noughts
            .map(|(key, _)| (key.to_owned(), "0 is not a whole number from 1 to 65535".to_owned()))
            .collect()
    }

    /// Lays them over `[router]`, and notes in `source` that `file` keeps them.
    pub fn lay_over(&self, config: &mut Config, source: &mut Source, file: &Path) {
        let router = &mut config.router;
        let mut note = |key: &str| source.overlay(&format!("router.{key}"), file);
        if let Some(address) = &self.address {
            router.address.clone_from(address);
            note("address");
        }
        if let Some(family) = self.address_family {
            router.address_family = family;
            note("address_family");
        }
        if let Some(mode) = self.startup_mode {
            router.startup_mode = mode;
            note("startup_mode");
        }
        if let Some(port) = self.port {
            router.port = port;
            note("port");
        }
        if let Some(port) = self.tls_port {
            router.tls_port = port;
            note("tls_port");
        }
        if let Some(udp) = self.udp {
            router.udp = udp;
            note("udp");
        }
        if let Some(maintenance) = self.maintenance {
            router.maintenance = maintenance;
            note("maintenance");
        }
    }
}

/// Where a node keeps them.
pub fn file(data: &Path) -> PathBuf {
    data.join(FILE_NAME)
}

/// Reads what was set at run time; nothing when there is no such file.
///
/// # Errors
/// A file that cannot be read, or holds something else.
pub fn read(data: &Path) -> Result<CallRouterSettings, ConfigError> {
    let file = file(data);
    let problem = |line, key: &str, message| ConfigError {
        problems: vec![ConfigProblem { file: file.clone(), line, key: key.to_owned(), message }],
    };
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(CallRouterSettings::default()),
        Err(error) => return Err(problem(None, "", format!("cannot be read: {error}"))),
    };
    let document: Document = toml::from_str(&text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map(|before| before.matches('\n').count() + 1);
        problem(line, "", error.message().to_owned())
    })?;
    match document.router.problems().into_iter().next() {
        Some((key, message)) => Err(problem(None, &key, message)),
        None => Ok(document.router),
    }
}

/// Keeps `settings`, whole or not at all; without any the file goes away.
///
/// # Errors
/// What the file system says; the file is then as it was.
pub fn write(data: &Path, settings: &CallRouterSettings) -> io::Result<()> {
    let file = file(data);
    if settings.is_empty() {
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    } else {
        let document = Document { router: settings.clone() };
        let text = toml::to_string(&document).map_err(io::Error::other)?;
        let aside = data.join(format!("{FILE_NAME}+"));
        let mut out = File::create(&aside)?;
        out.write_all(format!("{HEADER}{text}").as_bytes())?;
        out.sync_all()?;
        fs::rename(&aside, &file)?;
    }
    File::open(data)?.sync_all()
}

/// Lays what was set at run time over `config`, whose data folder keeps it.
///
/// # Errors
/// Those of [`read`], and values that contradict the configuration's.
pub fn apply(config: &mut Config, source: &mut Source) -> Result<CallRouterSettings, ConfigError> {
    let data = config.node.data.clone();
    let settings = read(&data)?;
    if settings.is_empty() {
        return Ok(settings);
    }
    let kept = file(&data);
    settings.lay_over(config, source, &kept);
    let problems = config.contradictions();
    if problems.is_empty() {
        return Ok(settings);
    }
    let problem = |(key, message): (String, String)| {
        let (file, line) = match source.origin(&key) {
            Origin::File(file, line) => (file, Some(line)),
            Origin::RunTime(file) => (file, None),
            Origin::Default => (kept.as_path(), None),
        };
        ConfigProblem { file: file.into(), line, key, message }
    };
    Err(ConfigError { problems: problems.into_iter().map(problem).collect() })
}

/// Every setting in force with where it comes from.
pub fn settings(config: &Config, source: &Source) -> Vec<CallRouterSetting> {
    let router = &config.router;
    let values = [
        ("address", json!(router.address)),
        ("address_family", json!(router.address_family)),
        ("startup_mode", json!(router.startup_mode)),
        ("port", json!(router.port)),
        ("tls_port", json!(router.tls_port)),
        ("udp", json!(router.udp)),
        ("maintenance", json!(router.maintenance)),
    ];
    let setting = |(key, value): (&str, serde_json::Value)| CallRouterSetting {
        key: key.to_owned(),
        value,
        origin: match source.origin(&format!("router.{key}")) {
            Origin::Default => "default".to_owned(),
            Origin::File(file, line) => format!("{}:{line}", file.display()),
            Origin::RunTime(_) => "set at run time".to_owned(),
        },
    };
    values.into_iter().map(setting).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::config::StartupMode;

    fn config(data: &Path) -> Config {
        let mut config = Config::default();
        config.node.data = data.to_owned();
        config
    }

    /// Goal: what is set survives a restart, laid over the file's values, and --reset leaves nothing.
    /// Method: write, apply to a configuration with another port, write nothing.
    #[test]
    fn settings_lie_over_the_file_until_they_are_reset() {
        let data = tempfile::tempdir().unwrap();
        let set = CallRouterSettings {
            port: Some(5070),
            udp: Some(true),
            address: Some(serde_json::from_str(r#"["127.0.0.1","::1"]"#).unwrap()),
            ..CallRouterSettings::default()
        };
        write(data.path(), &set).unwrap();
        let mut laid = config(data.path());
        laid.router.tls_port = 5099;
        let mut source = Source::default();
        assert_eq!(apply(&mut laid, &mut source), Ok(set));
        assert_eq!((laid.router.port, laid.router.tls_port, laid.router.udp), (5070, 5099, true));
        let shown: Vec<_> = settings(&laid, &source)
            .into_iter()
            .map(|s| format!("{}={} {}", s.key, s.value, s.origin))
            .collect();
        assert_eq!(shown[0], r#"address=["127.0.0.1","::1"] set at run time"#);
        assert_eq!(shown[3..5], ["port=5070 set at run time", "tls_port=5099 default"]);
        write(data.path(), &CallRouterSettings::default()).unwrap();
        assert_eq!(fs::read_dir(data.path()).unwrap().count(), 0, "no file is left");
        write(data.path(), &CallRouterSettings::default()).unwrap();
    }

    /// Goal: later settings win key by key. Method: a port over a port and UDP.
    #[test]
    fn later_settings_win_key_by_key() {
        let old = CallRouterSettings { port: Some(5070), udp: Some(true), ..CallRouterSettings::default() };
        let new = CallRouterSettings { port: Some(5080), ..CallRouterSettings::default() };
        let both = new.over(old);
        assert_eq!((both.port, both.udp, both.tls_port), (Some(5080), Some(true), None));
    }

    /// Goal: a file that was edited badly, or no longer fits the configuration, is refused with its
    /// name. Method: an unknown key, port 0, no TOML, and TLS without a certificate.
    #[test]
    fn a_file_that_does_not_fit_is_refused_by_name() {
        let data = tempfile::tempdir().unwrap();
        let path = file(data.path());
        for (text, expected) in [
            ("[router]\nprot = 1\n", ":2: unknown field `prot`"),
            ("[router]\nport = 0\n", ": router.port: 0 is not"),
            ("[router\n", ":1: "),
            ("[router]\nstartup_mode = \"tls\"\n", ": router.startup_mode: \"tls\" needs tls.certificate"),
        ] {
            fs::write(&path, text).unwrap();
            let error = apply(&mut config(data.path()), &mut Source::default()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{}{expected}", path.display())), "{error}");
        }
        fs::write(&path, "[router]\nstartup_mode = \"tcp\"\n").unwrap();
        let settings = read(data.path()).unwrap();
        assert_eq!(settings.startup_mode, Some(StartupMode::Tcp));
    }
}
