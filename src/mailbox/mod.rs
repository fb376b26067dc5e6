//! Users, messages, greetings, PINs, audio: SQLite and files. No SIP.
