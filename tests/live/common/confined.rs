//! A world without io_uring, for one child process.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

/// `io_uring_setup`, `io_uring_enter`, `io_uring_register`: the same numbers on every architecture.
const CALLS: [i64; 3] = [425, 426, 427];

/// Does `work` on a thread to which the kernel refuses io_uring, as container runtimes do, and to
/// all processes it starts.
pub(crate) fn without_io_uring<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let rules = BTreeMap::from(CALLS.map(|call| (call, Vec::new())));
    let refuse = SeccompAction::Errno(1); // EPERM
    let arch = std::env::consts::ARCH.try_into().expect("an architecture that seccomp knows");
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).expect("a filter");
    let program: BpfProgram = filter.try_into().expect("a short program");
    std::thread::scope(|scope| {
        let confined = scope.spawn(|| {
            apply_filter(&program).expect("a filter may always be added");
            work()
        });
        confined.join().expect("the work does not panic")
    })
}
