/* Prints one number for all that its root file system shows; the sum of a hash of each name does not ask for an order. */
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static uint64_t sum;

static uint64_t fnv(uint64_t hash, const void *data, size_t size) {
    const unsigned char *bytes = data;
    while (size--) hash = (hash ^ *bytes++) * 1099511628211ULL;
    return hash;
}

/* What the engine puts into every container, and this program. */
static int engines_own(const char *path) {
    static const char *own[] = {"/dev", "/proc", "/sys", "/etc/hosts", "/etc/resolv.conf", "/etc/hostname", "/.walk"};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (!strcmp(path, own[i])) return 1;
    return 0;
}

static void walk(const char *directory) {
    DIR *open_directory = opendir(*directory ? directory : "/");
    struct dirent *found;
    while (open_directory && (found = readdir(open_directory))) {
        char path[4096], buffer[8192];
        struct stat status;
        uint64_t hash = 14695981039346656037ULL;
        ssize_t got;
        int file;
        if (!strcmp(found->d_name, ".") || !strcmp(found->d_name, "..")) continue;
        snprintf(path, sizeof path, "%s/%s", directory, found->d_name);
        if (engines_own(path) || lstat(path, &status)) continue;
        hash = fnv(hash, path, strlen(path) + 1);
        if (S_ISDIR(status.st_mode)) {
            if (strcmp(path, "/etc")) sum += fnv(hash, "d", 1);
            walk(path);
        } else if (S_ISLNK(status.st_mode)) {
            got = readlink(path, buffer, sizeof buffer);
            sum += fnv(fnv(hash, "l", 1), buffer, got > 0 ? (size_t)got : 0);
        } else if ((file = open(path, O_RDONLY)) >= 0) {
            hash = fnv(hash, "f", 1);
            while ((got = read(file, buffer, sizeof buffer)) > 0) hash = fnv(hash, buffer, (size_t)got);
            close(file);
            sum += hash;
        }
    }
    if (open_directory) closedir(open_directory);
}

int main(void) {
    walk("");
    printf("shown %016llx\n", (unsigned long long)sum);
    return 0;
}
