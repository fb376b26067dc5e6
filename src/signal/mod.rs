//! The SIP loop: listeners, connections. No media.
