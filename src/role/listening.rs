//! Listeners of a SIP loop that open and close while it runs.
//!
//! New ones open before old ones close, and old ones close only once all new ones are bound: a
//! change either happens whole or not at all. Connections stay.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, RecvTimeoutError, TryRecvError};
use crossbeam::queue::ArrayQueue;

use crate::signal::{ListenError, Listener, SignalOrder};

/// A SIP loop takes orders at least every 50 ms; one that does not for this long is stuck.
const BIND_TIMEOUT: Duration = Duration::from_secs(2);

/// One open listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open<T> {
    /// In flows and destinations.
    pub index: u16,
    /// Whose it is.
    pub owner: T,
    /// As configured.
    pub listener: Listener,
    /// Where it is bound.
    pub address: SocketAddr,
}

/// What a loop listens on, as its orderer sees it.
#[derive(Debug)]
pub struct Listening<T> {
    orders: Arc<ArrayQueue<SignalOrder>>,
    open: Vec<Open<T>>,
    next_index: u16,
}

/// A change under way: new listeners that were ordered, each with the place of its answer.
#[derive(Debug)]
pub struct Change<T> {
    wanted: Vec<(T, Listener)>,
    ordered: Vec<(u16, T, Listener, Receiver<io::Result<SocketAddr>>)>,
    bound: Vec<Open<T>>,
}

/// Why a listener did not open.
#[derive(Debug, thiserror::Error)]
#[error("{}/{}: {error}", .listener.address, .listener.transport.name())]
pub struct OpenError {
    /// As it was wanted.
    pub listener: Listener,
    /// What the kernel says.
    pub error: io::Error,
}

impl<T: Copy + PartialEq> Listening<T> {
    /// Of a loop that began with these, in this order.
    pub fn new(
        orders: Arc<ArrayQueue<SignalOrder>>,
        listeners: &[(T, Listener)],
        addresses: &[SocketAddr],
    ) -> Self {
        let pairs = (0_u16..).zip(listeners.iter().zip(addresses));
        let open: Vec<_> = pairs
            .map(|(index, (&(owner, listener), &address))| Open { index, owner, listener, address })
            .collect();
        let next_index = u16::try_from(open.len()).unwrap_or(u16::MAX);
        Self { orders, open, next_index }
    }

    /// What is open.
    pub fn open(&self) -> &[Open<T>] {
        &self.open
    }

    /// Gives the loop any other order.
    pub fn order(&self, order: SignalOrder) {
        if self.orders.push(order).is_err() {
            tracing::error!("the SIP loop does not take orders");
        }
    }

    /// Orders the listeners of `wanted` that are not open; `told` hears of each index before the
    /// loop can bring anything in there.
    pub fn begin(&mut self, wanted: &[(T, Listener)], mut told: impl FnMut(u16, T)) -> Change<T> {
        let mut ordered = Vec::new();
        for &(owner, listener) in wanted {
            if self.open.iter().any(|open| open.owner == owner && open.listener == listener) {
                continue;
            }
            let index = self.fresh_index();
            told(index, owner);
            let (bound, answer) = channel::bounded(1);
            // A full queue drops the sender, and the answer is that nobody answers.
            self.order(SignalOrder::Listen { index, listener, bound });
            ordered.push((index, owner, listener, answer));
        }
        Change { wanted: wanted.to_vec(), ordered, bound: Vec::new() }
    }

    /// Orders one more listener that no configuration knows of; its index, and where its address is
    /// told. It is closed by [`SignalOrder::Unlisten`].
    pub fn open_aside(&mut self, listener: Listener) -> (u16, Receiver<io::Result<SocketAddr>>) {
        let index = self.fresh_index();
        let (bound, answer) = channel::bounded(1);
        self.order(SignalOrder::Listen { index, listener, bound });
        (index, answer)
    }

    /// Indices of open listeners are taken; those of closed ones come again only after 65,536.
    fn fresh_index(&mut self) -> u16 {
        while self.open.iter().any(|open| open.index == self.next_index) {
            self.next_index = self.next_index.wrapping_add(1);
        }
        let index = self.next_index;
        self.next_index = index.wrapping_add(1);
        index
    }

    /// All new ones are bound: closes those no longer wanted.
    pub fn commit(&mut self, change: Change<T>) {
        let is_wanted = |open: &Open<T>| change.wanted.contains(&(open.owner, open.listener));
        let (kept, gone): (Vec<_>, Vec<_>) = self.open.drain(..).partition(is_wanted);
        for open in gone {
            self.order(SignalOrder::Unlisten { index: open.index });
        }
        self.open = kept;
        self.open.extend(change.bound);
        // In the order of the port map.
        self.open.sort_by_key(|open| change.wanted.iter().position(|w| *w == (open.owner, open.listener)));
    }

    /// Closes what the change had opened; the old ones stay.
    pub fn abort(&mut self, change: Change<T>) {
        let opened = change.bound.iter().map(|open| open.index);
        for index in opened.chain(change.ordered.iter().map(|(index, ..)| *index)) {
            self.order(SignalOrder::Unlisten { index });
        }
    }
}

impl<T: Copy> Change<T> {
    /// Waits for the loop, which must run on another thread.
    ///
    /// # Errors
    /// The first listener that could not be bound; the change is to be aborted.
    pub fn wait(&mut self, now: Instant) -> Result<(), OpenError> {
        let deadline = now + BIND_TIMEOUT;
        while let Some((index, owner, listener, answer)) = self.ordered.pop() {
            let result = answer.recv_deadline(deadline).unwrap_or_else(|error| {
                Err(match error {
                    RecvTimeoutError::Timeout => io::Error::other("the SIP loop does not answer"),
                    RecvTimeoutError::Disconnected => io::Error::other("the SIP loop took no order"),
                })
            });
            let bound = result.map(|address| Open { index, owner, listener, address });
            self.note(index, owner, listener, answer, bound)?;
        }
        Ok(())
    }

    /// Looks for answers; true once all have come. For whoever runs on the loop's own thread.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn poll(&mut self) -> Result<bool, OpenError> {
        while let Some((index, owner, listener, answer)) = self.ordered.pop() {
            let result = match answer.try_recv() {
                Err(TryRecvError::Empty) => {
                    self.ordered.push((index, owner, listener, answer));
                    return Ok(false);
                }
                Err(TryRecvError::Disconnected) => Err(io::Error::other("the SIP loop took no order")),
                Ok(result) => result,
            };
            let bound = result.map(|address| Open { index, owner, listener, address });
            self.note(index, owner, listener, answer, bound)?;
        }
        Ok(true)
    }

    /// A listener that failed stays among the ordered ones: it may open late, and abort closes it.
    fn note(
        &mut self,
        index: u16,
        owner: T,
        listener: Listener,
        answer: Receiver<io::Result<SocketAddr>>,
        bound: io::Result<Open<T>>,
    ) -> Result<(), OpenError> {
        match bound {
            Ok(open) => {
                self.bound.push(open);
                Ok(())
            }
            Err(error) => {
                self.ordered.push((index, owner, listener, answer));
                // The loop names the listener too; once is enough.
                let error = error.downcast::<ListenError>().map_or_else(|error| error, |named| named.error);
                Err(OpenError { listener, error })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;
    use crate::sip::flow::Transport;

    fn at(port: u16) -> Listener {
        Listener { transport: Transport::Tcp, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    /// Takes every order as a loop would; ports in `taken` cannot be bound. What it saw.
    fn serve(orders: &ArrayQueue<SignalOrder>, taken: &[u16]) -> Vec<String> {
        let mut seen = Vec::new();
        while let Some(order) = orders.pop() {
            match order {
                SignalOrder::Listen { index, listener, bound } => {
                    let port = listener.address.port();
                    seen.push(format!("listen {index} {port}"));
                    let result = if taken.contains(&port) {
                        Err(io::ErrorKind::AddrInUse.into())
                    } else {
                        Ok(listener.address)
                    };
                    bound.send(result).unwrap();
                }
                SignalOrder::Unlisten { index } => seen.push(format!("unlisten {index}")),
                SignalOrder::Tls(_) | SignalOrder::Limits(_) | SignalOrder::PassOn { .. } => {
                    panic!("nobody ordered that")
                }
            }
        }
        seen
    }

    fn listening(ports: &[u16]) -> (Listening<u8>, Arc<ArrayQueue<SignalOrder>>) {
        let orders = Arc::new(ArrayQueue::new(16));
        let listeners: Vec<_> = ports.iter().map(|port| (1, at(*port))).collect();
        let addresses: Vec<_> = listeners.iter().map(|(_, l)| l.address).collect();
        (Listening::new(Arc::clone(&orders), &listeners, &addresses), orders)
    }

    fn ports(listening: &Listening<u8>) -> Vec<(u16, u16)> {
        listening.open().iter().map(|open| (open.index, open.address.port())).collect()
    }

    /// Goal: what stays is not touched, what is new opens under a fresh index, and only then the old
    /// one closes. Method: 5060 and 5061 become 5060 and 5070.
    #[test]
    fn new_listeners_open_before_old_ones_close() {
        let (mut listening, orders) = listening(&[5060, 5061]);
        let mut told = Vec::new();
        let mut change =
            listening.begin(&[(1, at(5070)), (1, at(5060))], |index, owner| told.push((index, owner)));
        assert_eq!(told, [(2, 1)]);
        assert!(!change.poll().unwrap(), "nobody has answered");
        assert_eq!(serve(&orders, &[]), ["listen 2 5070"]);
        assert!(change.poll().unwrap());
        listening.commit(change);
        assert_eq!(serve(&orders, &[]), ["unlisten 1"]);
        assert_eq!(ports(&listening), [(2, 5070), (0, 5060)]);
    }

    /// Goal: one that cannot be bound undoes the whole change. Method: the second of two is taken.
    #[test]
    fn a_failed_bind_leaves_the_old_listeners() {
        let (mut listening, orders) = listening(&[5060]);
        let mut change = listening.begin(&[(1, at(5070)), (1, at(5071))], |_, _| {});
        assert_eq!(serve(&orders, &[5070]), ["listen 1 5070", "listen 2 5071"]);
        let error = change.wait(clock::now()).unwrap_err();
        assert_eq!(error.listener, at(5070));
        listening.abort(change);
        let mut closed = serve(&orders, &[]);
        closed.sort_unstable();
        assert_eq!(closed, ["unlisten 1", "unlisten 2"]);
        assert_eq!(ports(&listening), [(0, 5060)]);
        let change = listening.begin(&[(1, at(5070))], |_, _| {});
        assert_eq!(serve(&orders, &[]), ["listen 3 5070"], "a late answer cannot be taken for a new one's");
        listening.abort(change);
    }
}
