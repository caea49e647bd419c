/* Faults of the system below a process, switched on and off while it runs.
 *
 * Loaded with LD_PRELOAD. CHAOS_FAULTS names a file of four 64-bit numbers that the chaos runner
 * maps and writes: seconds that the wall clock is off, milliseconds that a sync takes longer, the
 * errno that a sync fails with, and the one that a positioned write fails with (0: none).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static volatile const int64_t *faults;
enum { CLOCK_OFFSET_S, SYNC_DELAY_MS, SYNC_ERRNO, WRITE_ERRNO, FAULTS };

static int (*real_clock_gettime)(clockid_t, struct timespec *);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static ssize_t (*real_pwrite64)(int, const void *, size_t, off64_t);

__attribute__((constructor)) static void prepare(void) {
  real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
  real_fsync = dlsym(RTLD_NEXT, "fsync");
  real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
  real_pwrite64 = dlsym(RTLD_NEXT, "pwrite64");
  const char *path = getenv("CHAOS_FAULTS");
  int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (fd < 0) return;
  void *map = mmap(NULL, FAULTS * sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
  close(fd);
  if (map != MAP_FAILED) faults = map;
}

static int64_t fault(int number) { return faults ? faults[number] : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
  if (!real_clock_gettime) real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
  int result = real_clock_gettime(clock, now);
  if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
    now->tv_sec += fault(CLOCK_OFFSET_S);
  return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  (void)zone;
  struct timespec exact;
  int result = clock_gettime(CLOCK_REALTIME, &exact);
  if (result == 0) {
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
  }
  return result;
}

time_t time(time_t *result) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  if (result) *result = exact.tv_sec;
  return exact.tv_sec;
}

static int sync_fault(void) {
  int64_t ms = fault(SYNC_DELAY_MS);
  if (ms) nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
  if (fault(SYNC_ERRNO)) {
    errno = (int)fault(SYNC_ERRNO);
    return -1;
  }
  return 0;
}

int fsync(int fd) { return sync_fault() ? -1 : real_fsync(fd); }

int fdatasync(int fd) { return sync_fault() ? -1 : real_fdatasync(fd); }

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
  if (fault(WRITE_ERRNO)) {
    errno = (int)fault(WRITE_ERRNO);
    return -1;
  }
  return real_pwrite64(fd, data, size, offset);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
  return pwrite64(fd, data, size, offset);
}
