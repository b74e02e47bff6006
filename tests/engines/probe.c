/* The only program of the test image. usage: probe COMMAND [ARGUMENT...] */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Say the time, on the clock that readiness is told in. */
static void stamp(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    printf("at %lld\n", now.tv_sec * 1000000000LL + now.tv_nsec);
    fflush(stdout);
}

static int serve(int port, const char *reply) {
    int on = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    char request[4096];
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 16)) return 3;
    stamp();
    for (;;) {
        int peer = accept(fd, NULL, NULL);
        if (peer < 0) return 4;
        if (reply && read(peer, request, sizeof request) > 0) dprintf(peer, "HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n", reply);
        close(peer);
    }
}

int main(int argc, char **argv) {
    if (argc > 2 && !strcmp(argv[1], "later")) { usleep(100000); argv++; argc--; }
    const char *command = argc > 1 ? argv[1] : "exit";
    const char *argument = argc > 2 ? argv[2] : "0";
    char cwd[4096];
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!strcmp(command, "exit")) { fprintf(stderr, "leaving with %s\n", argument); stamp(); return atoi(argument); }
    if (!strcmp(command, "say")) { stamp(); printf("%s\n", argument); fflush(stdout); pause(); }
    if (!strcmp(command, "warn")) { fprintf(stderr, "%s\n", argument); pause(); }
    if (!strcmp(command, "listen")) return serve(atoi(argument), NULL);
    if (!strcmp(command, "http")) return serve(atoi(argument), argc > 3 ? argv[3] : "200 OK");
    if (!strcmp(command, "wait")) pause();
    if (!strcmp(command, "eat")) {
        for (;;) { char *p = malloc(1 << 20); if (!p) return 5; memset(p, 1, 1 << 20); }
    }
    if (!strcmp(command, "fill")) {
        static char block[1 << 20];
        int fd = open("/full", O_WRONLY | O_CREAT, 0600);
        while (write(fd, block, sizeof block) > 0) {}
        perror("write");
        return 6;
    }
    if (!strcmp(command, "who")) {
        gid_t groups[32];
        int count = getgroups(32, groups);
        printf("uid=%d gid=%d cwd=%s home=%s mark=%s", getuid(), getgid(), getcwd(cwd, sizeof cwd), getenv("HOME"),
               getenv("MARK") ? getenv("MARK") : "");
        for (int i = 0; i < count; i++) printf(" group=%d", groups[i]);
        printf("\n");
    }
    return 0;
}
