//! Ring, buffer ring, tokens, sockets, probe. The only unsafe code.
