//! Conversions between Unix milliseconds, calendar dates and texts. They are pure: the time is an argument.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// RFC 3339 in UTC with milliseconds and `Z`.
pub fn rfc3339(unix_ms: u64) -> String {
    let at = Timestamp::from_millisecond(i64::try_from(unix_ms).unwrap_or(i64::MAX)).unwrap_or(Timestamp::MAX);
    format!("{at:.3}")
}

/// Unix milliseconds of an RFC 3339 text. The error does not contain the text.
pub fn parse_rfc3339(text: &str) -> Result<u64, &'static str> {
    let at: Timestamp = text
        .parse()
        .map_err(|_| "expected an RFC 3339 time such as 2026-04-30T10:00:00Z")?;
    u64::try_from(at.as_millisecond()).map_err(|_| "expected a time after 1970")
}

/// Days since 1970-01-01 in UTC.
pub fn day(unix_ms: u64) -> u32 {
    (unix_ms / 86_400_000) as u32
}

/// Unix seconds of the next UTC midnight.
pub fn next_midnight_s(unix_ms: u64) -> u64 {
    (unix_ms / 86_400_000 + 1) * 86_400
}

/// Seconds until the next UTC midnight, rounded up, so that after this wait the next day has begun.
pub fn until_midnight_s(unix_ms: u64) -> u64 {
    next_midnight_s(unix_ms).saturating_sub(unix_ms / 1000)
}

/// `year * 100 + month` in UTC.
pub fn month(unix_ms: u64) -> u32 {
    let date = civil(unix_ms);
    date.year() as u32 * 100 + date.month() as u32
}

/// Unix milliseconds of the start of the next UTC month.
pub fn next_month_ms(unix_ms: u64) -> u64 {
    let first = civil(unix_ms).first_of_month();
    let next = first.checked_add(jiff::Span::new().months(1)).unwrap_or(first);
    let start = next
        .to_zoned(TimeZone::UTC)
        .map(|z| z.timestamp().as_millisecond())
        .unwrap_or(0);
    start as u64
}

fn civil(unix_ms: u64) -> jiff::civil::Date {
    Timestamp::from_millisecond(i64::try_from(unix_ms).unwrap_or(i64::MAX))
        .unwrap_or(Timestamp::MAX)
        .to_zoned(TimeZone::UTC)
        .date()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calendar_edges() {
        let last = parse_rfc3339("2026-12-31T23:59:59.999Z").unwrap();
        assert_eq!(month(last), 202_612);
        assert_eq!(month(last + 1), 202_701);
        assert_eq!(rfc3339(next_month_ms(last)), "2027-01-01T00:00:00.000Z");
        assert_eq!(next_midnight_s(last) * 1000, last + 1);
        assert_eq!(day(last) + 1, day(last + 1));
        assert_eq!((until_midnight_s(last), until_midnight_s(last + 1)), (1, 86_400));
        assert!(parse_rfc3339("yesterday").is_err_and(|e| !e.contains("yesterday")));
    }
}
