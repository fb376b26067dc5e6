//! What gateways' DNS names mean: asked of the system's resolver, again and again.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam::channel::{self, RecvTimeoutError, Sender};
use crossbeam::queue::ArrayQueue;

/// Addresses by name.
pub type Names = HashMap<String, Vec<IpAddr>>;

/// How often names are looked up.
const INTERVAL: Duration = Duration::from_secs(60);

/// Looks one name up. Blocks for as long as the system's resolver does.
///
/// # Errors
/// What the resolver says.
pub fn look_up(name: &str) -> io::Result<Vec<IpAddr>> {
    let mut addresses: Vec<_> = (name, 0).to_socket_addrs()?.map(|found| found.ip()).collect();
    addresses.sort();
    addresses.dedup();
    Ok(addresses)
}

/// A thread that keeps looking names up; it ends with its owner.
#[derive(Debug)]
pub struct Resolver {
    wanted: Sender<Vec<String>>,
    found: Arc<ArrayQueue<Names>>,
}

impl Resolver {
    /// Starts it; the first answers come as soon as the system's resolver gives them.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn spawn(names: Vec<String>) -> io::Result<Self> {
        let (wanted, orders) = channel::bounded(4);
        let found = Arc::new(ArrayQueue::new(1));
        let out = Arc::clone(&found);
        let body = move || {
            let mut names = names;
            let mut known = Known::default();
            loop {
                out.force_push(known.refresh(&names, look_up));
                match orders.recv_timeout(INTERVAL) {
                    Ok(wanted) => names = wanted,
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        };
        thread::Builder::new().name("dns".into()).spawn(body)?;
        Ok(Self { wanted, found })
    }

    /// Looks these up from now on, at once.
    pub fn want(&self, names: Vec<String>) {
        // One that has not begun with the last order yet is slower than reloads come; it asks again
        // within the interval.
        let _ = self.wanted.try_send(names);
    }

    /// What was found since the last call.
    pub fn found(&self) -> Option<Names> {
        self.found.pop()
    }
}

/// What is known, and what has been told of failures.
#[derive(Debug, Default)]
struct Known {
    names: Names,
    failing: Vec<String>,
}

impl Known {
    /// Looks all names up. One that fails keeps what it meant, and is told of once.
    fn refresh(&mut self, names: &[String], look_up: impl Fn(&str) -> io::Result<Vec<IpAddr>>) -> Names {
        self.names.retain(|name, _| names.contains(name));
        self.failing.retain(|name| names.contains(name));
        for name in names {
            match look_up(name) {
                Ok(addresses) => {
                    self.failing.retain(|failing| failing != name);
                    self.names.insert(name.clone(), addresses);
                }
                Err(error) if !self.failing.contains(name) => {
                    tracing::warn!(name, %error, "a gateway's name cannot be looked up; its last addresses stand");
                    self.failing.push(name.clone());
                }
                Err(_) => {}
            }
        }
        self.names.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a failing name keeps its addresses, one that is not wanted any more is forgotten.
    /// Method: a made-up resolver that changes its mind.
    #[test]
    fn a_failing_name_keeps_its_last_addresses() {
        let mut known = Known::default();
        let names = ["a.example".to_owned(), "b.example".to_owned()];
        let ip: IpAddr = "192.0.2.1".parse().unwrap();
        let found = known.refresh(&names, |_| Ok(vec![ip]));
        assert_eq!(found.len(), 2);
        let failing =
            |name: &str| if name == "b.example" { Err(io::Error::other("no")) } else { Ok(Vec::new()) };
        let found = known.refresh(&names, failing);
        assert_eq!((found["a.example"].len(), found["b.example"].as_slice()), (0, &[ip][..]));
        assert_eq!(known.failing, ["b.example"]);
        assert!(known.refresh(&names[..1], failing).len() == 1 && known.failing.is_empty());
    }

    /// Goal: the thread asks the system's resolver, at the start and when told. Method: localhost,
    /// which every system knows.
    #[test]
    fn the_thread_looks_names_up_at_once() {
        let resolver = Resolver::spawn(vec!["localhost".into()]).unwrap();
        let wait = || {
            (0..500).find_map(|_| {
                thread::sleep(Duration::from_millis(20));
                resolver.found()
            })
        };
        assert!(wait().unwrap()["localhost"].iter().all(IpAddr::is_loopback));
        resolver.want(Vec::new());
        assert!(wait().unwrap().is_empty());
    }
}
