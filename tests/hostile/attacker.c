/* A program of a hostile image: tries what it is told, one line "NAME RESULT" for each; RESULT is ok or errno's name. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(const char *name, int failed) {
    printf("%s %s\n", name, failed ? strerrorname_np(errno) : "ok");
    fflush(stdout);
}

static int opens(const char *path, int flags) {
    int fd = open(path, flags | O_NONBLOCK);
    if (fd >= 0) close(fd);
    return fd < 0;
}

/* A node made here and now, of a kind and with numbers the image chose. */
static int makes_and_opens(mode_t kind, int major_, int minor_) {
    unlink("/tmp/node");
    if (mknod("/tmp/node", kind | 0600, makedev(major_, minor_))) return 1;
    return opens("/tmp/node", O_RDWR);
}

/* One request to a port; the answer's status line is printed. */
static void ask(const char *method, const char *address, int port, const char *path) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, address, &to.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int failed = connect(fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS;
    if (!failed) {
        struct pollfd wait = {.fd = fd, .events = POLLOUT};
        int error = ETIMEDOUT;
        socklen_t size = sizeof error;
        if (poll(&wait, 1, 1500) > 0) getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
        errno = error;
        failed = error != 0;
    }
    char name[300];
    snprintf(name, sizeof name, "%s:%s:%d", method, address, port);
    if (failed || !strcmp(method, "CONNECT")) {
        say(name, failed);
    } else {
        char text[600];
        int length = snprintf(text, sizeof text, "%s %s HTTP/1.0\r\nHost: x\r\nContent-Length: 0\r\n\r\n", method, path);
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        send(fd, text, length, 0);
        int status = 0;
        if (poll(&wait, 1, 5000) > 0 && (length = recv(fd, text, sizeof text - 1, 0)) > 0) {
            text[length] = 0;
            sscanf(text, "HTTP/%*s %d", &status);
        }
        printf("%s %d\n", name, status);
    }
    close(fd);
}

/* Open what another process has open, or trace it: every pid that can be seen but one's own and one's children. */
static void look_at_others(void) {
    DIR *processes = opendir("/proc");
    struct dirent *entry;
    int seen = 0, traced = 0, opened = 0;
    while (processes && (entry = readdir(processes))) {
        int pid = atoi(entry->d_name);
        if (pid < 1 || pid == getpid()) continue;
        seen++;
        char path[400];
        for (int fd = 0; fd < 20; fd++) {
            snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
            if (!opens(path, O_WRONLY)) opened++;
        }
        if (!ptrace(PTRACE_SEIZE, pid, 0, 0)) traced++;
    }
    printf("others-seen %d\nothers-opened %d\nothers-traced %d\n", seen, opened, traced);
    fflush(stdout);
}

static int in_user_namespace(void *ignored) { return 0; }

static void status(const char *field) {
    FILE *file = fopen("/proc/self/status", "r");
    char line[300];
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, field, strlen(field)) && line[strlen(field)] == ':') {
            char *value = line + strlen(field) + 1;
            while (*value == '\t' || *value == ' ') value++;
            printf("%s %s", field, value);
        }
    fflush(stdout);
}

int main(int count, char **words) {
    for (int i = 1; i < count; i++) {
        char *word = words[i];
        if (!strcmp(word, "status")) {
            status("CapEff"), status("CapBnd"), status("NoNewPrivs"), status("Seccomp"), status("NSpid"), status("Uid");
        } else if (!strcmp(word, "euid")) {
            printf("euid %d\n", geteuid());
        } else if (!strcmp(word, "namespaces")) {
            say("unshare-user", unshare(CLONE_NEWUSER));
            say("unshare-mount", unshare(CLONE_NEWNS));
            static char stack[65536];
            say("clone-user", clone(in_user_namespace, stack + sizeof stack, CLONE_NEWUSER | SIGCHLD, 0) < 0);
            long unused[11] = {CLONE_NEWUSER, 0, 0, 0, SIGCHLD};
            say("clone3-user", syscall(SYS_clone3, unused, sizeof unused) < 0);
        } else if (!strcmp(word, "calls")) {
            say("mount", mount("t", "/tmp", "tmpfs", 0, ""));
            say("bpf", syscall(SYS_bpf, 5, 0, 0) < 0 && errno == EPERM);
            say("keyctl", syscall(SYS_keyctl, 0, 0, 0) < 0);
            say("vsock", socket(40, SOCK_STREAM, 0) < 0);
            say("io_uring", syscall(SYS_io_uring_setup, 1, 0) < 0 && errno == EPERM);
        } else if (!strcmp(word, "devices")) {
            say("layer-block", opens("/nodes/block", O_RDWR));
            say("layer-loop", opens("/nodes/loop", O_RDONLY));
            say("layer-mem", opens("/nodes/mem", O_RDONLY));
            say("layer-fuse", opens("/nodes/fuse", O_RDWR));
            say("layer-null", opens("/nodes/null", O_RDWR));
            say("made-loop", makes_and_opens(S_IFBLK, 7, 0));
            say("made-kmsg", makes_and_opens(S_IFCHR, 1, 11));
            say("made-fuse", makes_and_opens(S_IFCHR, 10, 229));
            say("dev-null", opens("/dev/null", O_RDWR));
            say("dev-urandom", opens("/dev/urandom", O_RDONLY));
        } else if (!strcmp(word, "paths")) {
            say("sysrq", opens("/proc/sysrq-trigger", O_WRONLY));
            say("core-pattern", opens("/proc/sys/kernel/core_pattern", O_WRONLY));
            say("sys", opens("/sys/class/net/lo/tx_queue_len", O_WRONLY));
            FILE *kcore = fopen("/proc/kcore", "r");
            printf("kcore %s\n", kcore && fgetc(kcore) != EOF ? "ok" : "empty");
        } else if (!strcmp(word, "others")) {
            look_at_others();
        } else if (!strcmp(word, "sleep")) {
            fflush(stdout);
            sleep(300);
        } else if (!strcmp(word, "ask")) {  /* ask METHOD ADDRESS PORT PATH */
            ask(words[i + 1], words[i + 2], atoi(words[i + 3]), words[i + 4]);
            i += 4;
        } else if (!strcmp(word, "forge")) {  /* pretend to be the program that measures, on every descriptor there is */
            for (int fd = 0; fd < 64; fd++) dprintf(fd, "{\"wall_s\": 0, \"cpu_s\": 0, \"operations\": 1, \"bytes\": 0, \"passes\": 1}\n");
        } else if (!strcmp(word, "report")) {  /* report FILE WORDS...: the rest is written into a file */
            freopen(words[++i], "w", stdout);
        } else {
            printf("%s ?\n", word);
        }
    }
    fflush(stdout);
    return 0;
}
