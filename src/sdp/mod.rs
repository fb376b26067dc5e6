//! Offer and answer (RFC 3264) over `sdp-types`. No sockets.
