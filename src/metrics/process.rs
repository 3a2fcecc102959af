//! What the kernel counts of this process, read from `/proc` at each scrape. What the sandbox hides is left out.

use std::fs;

use super::Sheet;

pub(super) fn collect(sheet: &mut Sheet) {
    if let Ok(stat) = fs::read_to_string("/proc/self/stat")
        && let Some(ticks) = cpu_ticks(&stat)
    {
        sheet.counter(CPU, "User and system time of the process.", &[], ticks as f64 / TICKS_PER_SECOND);
    }
    if let Ok(status) = fs::read_to_string("/proc/self/status") {
        for (line, scale, name, help) in STATUS {
            if let Some(n) = number_behind(&status, line) {
                sheet.gauge(name, help, &[], n as f64 * scale);
            }
        }
    }
    if let Ok(entries) = fs::read_dir("/proc/self/fd") {
        // The directory itself is open while it is read.
        sheet.gauge("process_open_fds", "Open file descriptors.", &[], entries.count().saturating_sub(1) as f64);
    }
    if let Ok(limits) = fs::read_to_string("/proc/self/limits")
        && let Some(max) = number_behind(&limits, "Max open files")
    {
        sheet.gauge("process_max_fds", "The soft limit of file descriptors.", &[], max as f64);
    }
}

/// Fields 14 and 15 of proc_pid_stat(5). The second, the name, may hold blanks and parentheses.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_ascii_whitespace().skip(11);
    let (user, system) = (fields.next()?.parse::<u64>().ok()?, fields.next()?.parse::<u64>().ok()?);
    user.checked_add(system)
}

fn number_behind(text: &str, line: &str) -> Option<u64> {
    let rest = text.lines().find_map(|l| l.strip_prefix(line))?;
    rest.trim_start_matches(':').split_ascii_whitespace().next()?.parse().ok()
}

const CPU: &str = "process_cpu_seconds_total";
/// USER_HZ, which is 100 on every architecture that this runs on.
const TICKS_PER_SECOND: f64 = 100.0;
const STATUS: [(&str, f64, &str, &str); 3] = [
    ("VmRSS", 1024.0, "process_resident_memory_bytes", "Resident memory."),
    ("VmSize", 1024.0, "process_virtual_memory_bytes", "Virtual memory."),
    ("Threads", 1.0, "process_threads", "Threads."),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_process_does_not_shift_its_fields() {
        let stat = "7 (a) R (x 1) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0";
        assert_eq!(cpu_ticks(stat), Some(200));
        assert_eq!(cpu_ticks("7"), None);
    }

    #[test]
    fn this_process_is_described() {
        let mut sheet = Sheet::default();
        collect(&mut sheet);
        let mut out = Vec::new();
        sheet.write(&mut out);
        let page = String::from_utf8(out).unwrap();
        for name in [CPU, "process_resident_memory_bytes", "process_open_fds", "process_max_fds", "process_threads"] {
            let line = page.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{name} is not in\n{page}"));
            let value: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
            assert!(value > 0.0 || name == CPU, "{line}");
        }
    }
}
