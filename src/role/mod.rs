//! Router, UM service, worker, supervisor: wires the rooms together.
