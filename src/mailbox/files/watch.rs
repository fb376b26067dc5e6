//! The file thread's eye on the disk: a look each second, and trials while it refuses.

use std::rc::Rc;
use std::time::Instant;

use super::Desk;
use crate::base::clock;
use crate::mailbox::disk::{LOOK_INTERVAL, PROBE_INTERVAL, Places, Trouble};
use crate::mailbox::store::database;

impl Desk {
    /// Looks at the disk if it is time for that.
    pub(super) fn watch(self: &Rc<Self>, now: Instant) {
        let refuses = self.ends.disk.trouble().is_some();
        let interval = if refuses { PROBE_INTERVAL } else { LOOK_INTERVAL };
        if now < self.watched.get() + interval || self.is_watching.replace(true) {
            return;
        }
        let desk = Rc::clone(self);
        self.spawn(async move {
            if refuses {
                desk.try_again().await;
            } else {
                desk.look().await;
            }
            desk.watched.set(clock::now());
            desk.is_watching.set(false);
        });
    }

    /// Looks without writing: what can be told before somebody has spoken in vain.
    pub(super) async fn look(&self) {
        let places = self.places();
        if let Err(why) = blocking(move || places.look()).await {
            self.ends.disk.refused(why);
        }
    }

    /// Writes to everything a message needs. Where that succeeds calls are taken again, and what
    /// waits in the spool is delivered at once.
    async fn try_again(&self) {
        let places = self.places();
        let written = match blocking(move || places.write()).await {
            Ok(()) => self.ends.store.try_write().await,
            refused => refused,
        };
        match written {
            Ok(()) => {
                self.ends.disk.restored();
                self.sweep_at.set(clock::now());
            }
            Err(why) => self.ends.disk.refused(why),
        }
    }

    fn places(&self) -> Places {
        let data = &self.ends.config.data;
        // Both slots' workers may try at once.
        let audio = data.join("messages").join(format!(".probe-{}", std::process::id()));
        Places {
            probes: [self.lane.probe(), audio],
            store: database(data),
            free_min: self.ends.config.free_min,
        }
    }
}

/// It waits for the disk, the file thread must not.
async fn blocking(work: impl FnOnce() -> Result<(), Trouble> + Send + 'static) -> Result<(), Trouble> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Trouble::Other))
}
