//! The runtime of a thread that waits for files and connections: tokio-uring, or tokio alone where
//! io_uring is forbidden.

use std::io;

use io_uring::IoUring;
use tokio::task::LocalSet;

/// Blocking calls at once where there is no ring; more wait.
const BLOCKING_MAX: usize = 32;

/// Runs futures on the thread that made it; all they spawn stays there.
pub enum Runtime {
    /// With operations of `tokio_uring`.
    Ring(tokio_uring::Runtime),
    /// Without them; they would panic.
    Plain {
        /// Ends before the runtime it runs on.
        tasks: LocalSet,
        /// tokio's own.
        runtime: tokio::runtime::Runtime,
    },
}

impl Runtime {
    /// With a ring of `entries` operations if the kernel gives one, else without; the log says why.
    ///
    /// # Errors
    /// Out of descriptors or memory.
    pub fn new(entries: u32) -> io::Result<Self> {
        // tokio-uring itself does not clean up after a ring it was refused.
        if let Err(error) = IoUring::new(2) {
            let thread = std::thread::current();
            let thread = thread.name().unwrap_or_default();
            tracing::info!(thread, %error, "this thread has no io_uring; its files are written by blocking calls");
            return Self::plain();
        }
        let mut builder = tokio_uring::builder();
        builder.entries(entries);
        Ok(Self::Ring(tokio_uring::Runtime::new(&builder)?))
    }

    /// Without a ring, whatever the kernel gives.
    ///
    /// # Errors
    /// Out of descriptors or memory.
    pub fn plain() -> io::Result<Self> {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().max_blocking_threads(BLOCKING_MAX).build()?;
        Ok(Self::Plain { tasks: LocalSet::new(), runtime })
    }

    /// Runs `future` to its end.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        match self {
            Self::Ring(runtime) => runtime.block_on(future),
            Self::Plain { tasks, runtime } => tasks.block_on(runtime, future),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what a thread does with either runtime is the same. Method: a task of its own, a timer
    /// and a blocking call on each.
    #[test]
    fn tasks_timers_and_blocking_calls_run_on_either() {
        for runtime in [Runtime::new(8).unwrap(), Runtime::plain().unwrap()] {
            let sum = runtime.block_on(async {
                let task = tokio::task::spawn_local(async {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                    1
                });
                let call = tokio::task::spawn_blocking(|| 2);
                task.await.unwrap() + call.await.unwrap()
            });
            assert_eq!(sum, 3);
        }
    }
}
