//! Numbers as a person reads them.

use crate::load::result::count;

/// With commas between thousands: `2,340`.
pub fn whole(number: u64) -> String {
    grouped(&number.to_string())
}

/// The nearest whole number, with commas between thousands.
pub fn rounded(number: f64) -> String {
    let sign = if number < -0.5 { "-" } else { "" };
    format!("{sign}{}", grouped(&format!("{:.0}", number.abs())))
}

fn grouped(digits: &str) -> String {
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Up to so many decimals, without zeros at the end.
pub fn trimmed(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// A share from 0 to 1 as per cent, with digits enough to tell small ones apart.
pub fn share(share: f64) -> String {
    let percent = share * 100.0;
    match percent {
        _ if percent == 0.0 => "0 %".to_owned(),
        _ if percent.abs() < 0.999e-5 => format!("{percent:.1e} %"),
        _ if percent.abs() < 0.001 => format!("{} %", trimmed(percent, 5)),
        _ if percent.abs() < 0.1 => format!("{} %", trimmed(percent, 4)),
        _ => format!("{} %", trimmed(percent, 2)),
    }
}

/// Microseconds in the unit a person would choose.
pub fn time(microseconds: f64) -> String {
    match microseconds {
        _ if microseconds < 10.0 => format!("{} us", trimmed(microseconds, 2)),
        _ if microseconds < 1e3 => format!("{} us", trimmed(microseconds, 0)),
        _ if microseconds < 1e4 => format!("{} ms", trimmed(microseconds / 1e3, 2)),
        _ if microseconds < 1e6 => format!("{} ms", trimmed(microseconds / 1e3, 1)),
        _ => format!("{} s", trimmed(microseconds / 1e6, 2)),
    }
}

/// A time of whole microseconds, a dash for none.
pub fn time_or_dash(microseconds: Option<u64>) -> String {
    microseconds.map_or_else(|| "–".to_owned(), |microseconds| time(count(microseconds)))
}

/// Bytes in KiB, MiB or GiB.
pub fn bytes(bytes: f64) -> String {
    match bytes {
        _ if bytes < 1024.0 => format!("{bytes:.0} B"),
        _ if bytes < 1_048_576.0 => format!("{} KiB", trimmed(bytes / 1024.0, 1)),
        _ if bytes < 1_073_741_824.0 => format!("{} MiB", trimmed(bytes / 1_048_576.0, 1)),
        _ => format!("{} GiB", trimmed(bytes / 1_073_741_824.0, 1)),
    }
}

/// The calendar date and time of seconds since 1970, in UTC: `2026-11-28 22:05`.
pub fn utc(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    // Days of the proleptic Gregorian calendar in eras of 400 years that begin on the 1st of March.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + next;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}", second / 3600, second / 60 % 60)
}

/// A command line that a shell takes as it was meant.
pub fn command(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@=,+%".contains(c);
    let quoted = words.iter().map(|word| {
        if !word.is_empty() && word.chars().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: numbers read well over their whole range. Method: one of each branch.
    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 999, 1000, 1_234_567].map(whole), ["0", "999", "1,000", "1,234,567"]);
        let shares = [0.0, 1e-9, 1e-7, 0.0002, 0.0123, 1.0].map(share);
        assert_eq!(shares, ["0 %", "1.0e-7 %", "0.00001 %", "0.02 %", "1.23 %", "100 %"]);
        let times = [0.0, 2.5, 640.4, 1234.0, 25_040.0, 1_500_000.0].map(time);
        assert_eq!(times, ["0 us", "2.5 us", "640 us", "1.23 ms", "25 ms", "1.5 s"]);
        assert_eq!([0.4, 999.6, -1234.5].map(rounded), ["0", "1,000", "-1,234"]);
        assert_eq!(
            [512.0, 2048.0, 5_242_880.0, 8_589_934_592.0].map(bytes),
            ["512 B", "2 KiB", "5 MiB", "8 GiB"]
        );
        assert_eq!((trimmed(-0.001, 1), trimmed(100.0, 0)), ("0".to_owned(), "100".to_owned()));
        assert_eq!((time_or_dash(None), time_or_dash(Some(7))), ("–".to_owned(), "7 us".to_owned()));
    }

    /// Goal: dates are right. Method: the epoch, a leap day, the billionth second (`date -u -d @N`).
    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01 00:00");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00");
        assert_eq!(utc(1_000_000_000), "2001-09-09 01:46");
        assert_eq!(utc(1_798_761_599), "2026-12-31 23:59");
    }

    /// Goal: a command can be copied into a shell. Method: words with blanks, semicolons, quotes.
    #[test]
    fn a_command_can_be_pasted() {
        let words = ["voxperf", "sip:9196@127.0.0.1;transport=tcp", "it's", ""].map(str::to_owned);
        assert_eq!(command(&words), r"voxperf 'sip:9196@127.0.0.1;transport=tcp' 'it'\''s' ''");
    }
}
